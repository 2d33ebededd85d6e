// Drives the published npm package @e2b/code-interpreter on one sandbox, whose user's home is given: drive_interpreter.mjs HOME SECTION... Says `done` after each.
import assert from 'node:assert/strict'
import { Sandbox, NotFoundError, TimeoutError } from '@e2b/code-interpreter'

const [home, ...asked] = process.argv.slice(2)
const sandbox = await Sandbox.create({ timeoutMs: 600_000 })
const PNG = 'iVBORw0KGgo'

const sections = {
  async cells() {
    const first = await sandbox.runCode('6 * 7')
    assert.deepEqual([first.text, first.executionCount, first.error, first.results.length], ['42', 1, undefined, 1])
    await sandbox.runCode('kept = [1, 2]')
    assert.equal((await sandbox.runCode('len(kept)')).text, '2')
    const said = await sandbox.runCode("import sys\nprint('ü' * 100_000)\nprint('wrong', file=sys.stderr)")
    assert.equal(said.logs.stdout.join(''), 'ü'.repeat(100_000) + '\n')
    assert.equal(said.logs.stderr.join(''), 'wrong\n')
    assert.equal((await sandbox.runCode('import os; os.environ["A"]', { envs: { A: 'b' } })).text, 'b')
    assert.equal((await sandbox.runCode('"A" in os.environ')).text, 'False')
    assert.equal((await sandbox.runCode('const n: number = 6; await Promise.resolve(n * 7)', { language: 'typescript' })).text, '42')
    assert.equal((await sandbox.runCode('echo $((6 * 7))', { language: 'bash' })).logs.stdout.join(''), '42\n')
    await assert.rejects(sandbox.runCode('1', { language: 'cobol' }))
  },
  async contexts() {
    const before = (await sandbox.listCodeContexts()).length
    const one = await sandbox.createCodeContext({ cwd: '/tmp' })
    const two = await sandbox.createCodeContext({ language: 'javascript' })
    assert.deepEqual([one.language, one.cwd, two.language, two.cwd], ['python', '/tmp', 'javascript', home])
    assert.equal((await sandbox.listCodeContexts()).length, before + 2)
    assert.equal((await sandbox.runCode('import os; own = 1; os.getcwd()', { context: one })).text, '/tmp')
    assert.equal((await sandbox.runCode('const own = 2; own', { context: two })).text, '2')
    assert.equal((await sandbox.runCode('"own" in globals()')).text, 'False')
    await sandbox.restartCodeContext(one)
    assert.equal((await sandbox.runCode('"own" in globals()', { context: one })).text, 'False')
    for (const context of [one, two.id]) await sandbox.removeCodeContext(context)
    assert.equal((await sandbox.listCodeContexts()).length, before)
    await assert.rejects(sandbox.runCode('1', { context: one }), NotFoundError)
  },
  async errors() {
    const heard = []
    const failed = await sandbox.runCode('alive = 1\nprint("before")\n1 / 0', { onError: (error) => { heard.push(error.name) } })
    assert.deepEqual([failed.error.name, failed.error.value, failed.text], ['ZeroDivisionError', 'division by zero', undefined])
    assert.match(failed.error.traceback, /ZeroDivisionError/)
    assert.deepEqual([heard, failed.logs.stdout.join('')], [['ZeroDivisionError'], 'before\n'])
    assert.equal((await sandbox.runCode('throw new TypeError("no")', { language: 'javascript' })).error.name, 'TypeError')
    await assert.rejects(sandbox.runCode('alive = 2\nwhile True: pass', { timeoutMs: 3_000 }), TimeoutError)
    assert.equal((await sandbox.runCode('alive')).text, '2')
    assert.equal((await sandbox.runCode('import os; os._exit(3)')).error.name, 'KernelDied')
    assert.equal((await sandbox.runCode('"alive" in globals()')).text, 'False')
  },
  async charts() {
    const drawn = await sandbox.runCode("import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [2, 3]); plt.title('Bars'); plt.show()")
    const [bars] = drawn.results
    assert.ok(bars.png.startsWith(PNG) && Buffer.from(bars.png, 'base64').length > 1000)
    assert.deepEqual([bars.chart.type, bars.chart.title, bars.chart.elements.map((each) => each.value)], ['bar', 'Bars', [2, 3]])
    assert.ok(bars.formats().includes('png'))
    const { results: [table] } = await sandbox.runCode("import pandas; pandas.DataFrame({'a': [1, 2], 'b': ['x', None]})")
    assert.deepEqual(table.data, { a: [1, 2], b: ['x', null] })
    assert.match(table.html, /<table/)
    const shown = await sandbox.runCode("from IPython.display import display, Markdown\ndisplay(Markdown('*m*'))\n'end'")
    assert.deepEqual(shown.results.map((each) => [each.isMainResult, each.markdown ?? each.text]), [[false, '*m*'], [true, 'end']])
  },
  async streaming() {
    // The cell goes on when its first line was heard here: nothing is kept back until its end.
    const heard = []
    const code = "import os, sys, time\nprint('first')\nwhile not os.path.exists('/tmp/heard'): time.sleep(0.01)\nprint('second', file=sys.stderr)\n6 * 7"
    const execution = await sandbox.runCode(code, {
      onStdout: async (output) => { heard.push(['out', output.line, output.error]); await sandbox.files.write('/tmp/heard', '') },
      onStderr: (output) => { heard.push(['err', output.line, output.error]) },
      onResult: (result) => { heard.push(['result', result.text]) },
    })
    assert.deepEqual(heard, [['out', 'first\n', false], ['err', 'second\n', true], ['result', '42']])
    assert.equal(execution.text, '42')
  },
  async pausing() {
    await sandbox.runCode('slept = "through"')
    assert.ok(await sandbox.pause())
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.equal((await again.runCode('slept')).text, 'through')
  },
}

for (const section of asked) {
  await sections[section]()
  console.log('done', section)
}
assert.ok(await sandbox.kill())
process.exit(0) // the package leaves the timer of a refused request running, which would hold Node for a minute
