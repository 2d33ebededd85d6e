// Drives the published npm package e2b on one running sandbox: drive_envd.mjs SDK SANDBOX HOME SECTION... Says `done` after each.
import assert from 'node:assert/strict'

const [sdk, id, home, ...sections] = process.argv.slice(2)
const { Sandbox, CommandExitError, TimeoutError, NotFoundError } = await import(sdk)

async function until(condition) {
  const deadline = Date.now() + 100_000
  for (;;) {
    const found = await condition()
    if (found) return found
    assert.ok(Date.now() < deadline, 'it does not come')
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

const known = {
  async commands() {
    const sandbox = await Sandbox.connect(id)
    assert.ok(await sandbox.isRunning())
    const result = await sandbox.commands.run('echo out; echo err >&2; echo $A', { envs: { A: 'ü' } })
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\nü\n', 'err\n', 0])
    await assert.rejects(sandbox.commands.run('exit 7'), (error) => error instanceof CommandExitError && error.exitCode === 7)
    await assert.rejects(sandbox.commands.run('sleep 1000', { timeoutMs: 2000 }), TimeoutError)
    await until(async () => (await sandbox.commands.list()).length === 0)
    const handle = await sandbox.commands.run('cat', { background: true, stdin: true })
    assert.deepEqual((await sandbox.commands.list()).map((each) => each.pid), [handle.pid])
    await sandbox.commands.sendStdin(handle.pid, 'typed')
    await until(() => handle.stdout === 'typed')
    await handle.disconnect()
    const again = await sandbox.commands.connect(handle.pid)
    assert.ok(await again.kill())
    await assert.rejects(again.wait(), (error) => error instanceof CommandExitError && error.error === 'signal: killed')
    assert.ok(!(await sandbox.commands.kill(handle.pid)))
  },
  async pty() {
    const sandbox = await Sandbox.connect(id)
    let heard = ''
    const decoder = new TextDecoder()
    const terminal = await sandbox.pty.create({ rows: 30, cols: 90, onData: (data) => { heard += decoder.decode(data) } })
    await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\n'))
    await until(() => heard.includes('30 90'))
    await sandbox.pty.resize(terminal.pid, { rows: 20, cols: 40 })
    await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\n'))
    await until(() => heard.includes('20 40'))
    assert.ok(await sandbox.pty.kill(terminal.pid))
  },
  async files() {
    const sandbox = await Sandbox.connect(id)
    const made = await sandbox.files.write('js/one', 'text ü')
    assert.equal(made.path, `${home}/js/one`)
    assert.equal(await sandbox.files.read('js/one'), 'text ü')
    assert.deepEqual(await sandbox.files.read('js/one', { format: 'bytes' }), new Uint8Array(Buffer.from('text ü')))
    await sandbox.files.write([{ path: 'js/two', data: 'b' }, { path: 'js/three', data: new Blob(['c'.repeat(300000)]).stream() }])
    assert.deepEqual((await sandbox.files.list('js')).map((each) => each.name), ['one', 'three', 'two'])
    assert.equal((await sandbox.files.getInfo('js/three')).size, 300000)
    assert.ok(await sandbox.files.makeDir('js/deep/er'))
    assert.ok(!(await sandbox.files.makeDir('js/deep/er')))
    assert.equal((await sandbox.files.rename('js/one', 'js/deep/one')).path, `${home}/js/deep/one`)
    assert.ok(await sandbox.files.exists('js/deep/one'))
    await sandbox.files.remove('js')
    assert.ok(!(await sandbox.files.exists('js')))
    await assert.rejects(sandbox.files.read('js/one'), NotFoundError)
    await sandbox.files.write('meta', 'x', { metadata: { kind: 'a b' } })
    assert.deepEqual((await sandbox.files.getInfo('meta')).metadata, { kind: 'a b' })
  },
  async watching() {
    const sandbox = await Sandbox.connect(id)
    await sandbox.files.makeDir('jw')
    const events = []
    const watch = await sandbox.files.watchDir('jw', (event) => events.push(`${event.name} ${event.type}`), { recursive: true })
    await sandbox.files.write('jw/f', 'x')
    await until(() => events.length >= 3)
    assert.deepEqual(events, ['f create', 'f chmod', 'f write'])
    await sandbox.files.makeDir('jw/inner')
    await sandbox.files.write('jw/inner/g', 'x')
    await until(() => events.includes('inner/g write'))
    await watch.stop()
  },
  async signed() {
    const sandbox = await Sandbox.connect(id)
    const form = new FormData()
    form.append('file', new Blob(['by a signature']))
    const upload = await sandbox.uploadUrl('signed', { useSignatureExpiration: 1000 })
    assert.equal((await fetch(upload, { method: 'POST', body: form })).status, 200)
    assert.equal(await (await fetch(await sandbox.downloadUrl('signed'))).text(), 'by a signature')
  },
}

for (const section of sections) {
  await known[section]()
  console.log('done', section)
}
process.exit(0)
