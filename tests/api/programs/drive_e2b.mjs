// Drives E2B's published npm package, told of us by its environment, through its public methods: node drive_e2b.mjs SECTION... Says `done` after each.
// What goes through envd (commands, files) belongs into sections of its own at the end.

import assert from 'node:assert/strict'
import { NotFoundError, Sandbox, SandboxError } from 'e2b'

const left = async (sandbox) => (await sandbox.getInfo()).endAt.getTime() / 1000 - Date.now() / 1000
const between = (value, low, high) => assert.ok(low < value && value <= high, `${value} is not in (${low}, ${high}]`)

const sections = {
  async lifecycle() {
    const sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata: { driver: 'node', 'odd &=+': 'v =1/é' } })
    const info = await sandbox.getInfo()
    assert.equal(info.sandboxId, sandbox.sandboxId)
    assert.deepEqual(info.metadata, { driver: 'node', 'odd &=+': 'v =1/é' })
    assert.equal(info.state, 'running')
    between(await left(sandbox), 100, 120)
    await sandbox.setTimeout(60_000)
    between(await left(sandbox), 40, 60)
    const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 30_000 })
    assert.equal(again.sandboxId, sandbox.sandboxId)
    between(await left(sandbox), 40, 60)
    assert.equal(await sandbox.kill(), true)
    assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
    await assert.rejects(Sandbox.getInfo(sandbox.sandboxId), NotFoundError)
    await assert.rejects(Sandbox.create('no-such-template'), SandboxError)
  },
  async pausing() {
    const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
    await sandbox.pause()
    assert.equal((await sandbox.getInfo()).state, 'paused')
    await sandbox.connect({ timeoutMs: 200_000 })
    assert.equal((await sandbox.getInfo()).state, 'running')
    between(await left(sandbox), 150, 201)
    assert.equal(await sandbox.kill(), true)
  },
  async forks() {
    const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
    const made = await sandbox.fork({ count: 2 })
    const ids = made.map((one) => (one.sandbox ?? one).sandboxId)
    assert.equal(new Set([...ids, sandbox.sandboxId]).size, 3)
    for (const id of [...ids, sandbox.sandboxId]) assert.equal(await Sandbox.kill(id), true)
  },
  async lists() {
    const mark = `m${process.hrtime.bigint()}&=`
    const made = []
    for (let number = 0; number < 3; number++) made.push(await Sandbox.create({ timeoutMs: 120_000, metadata: { mark } }))
    const ids = made.map((one) => one.sandboxId).reverse()
    const pages = Sandbox.list({ query: { metadata: { mark } }, limit: 2 })
    assert.deepEqual((await pages.nextItems()).map((one) => one.sandboxId), ids.slice(0, 2))
    assert.equal(pages.hasNext, true)
    assert.deepEqual((await pages.nextItems()).map((one) => one.sandboxId), ids.slice(2))
    assert.equal(pages.hasNext, false)
    await made[0].pause()
    const paused = Sandbox.list({ query: { metadata: { mark }, state: ['paused'] } })
    assert.deepEqual((await paused.nextItems()).map((one) => one.sandboxId), [made[0].sandboxId])
    for (const one of made) assert.equal(await one.kill(), true)
  },
  async snapshots() {
    const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
    const snapshot = await sandbox.createSnapshot()
    const listed = Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId })
    assert.deepEqual((await listed.nextItems()).map((one) => one.snapshotId), [snapshot.snapshotId])
    const started = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
    assert.equal(await started.kill(), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    assert.equal(await sandbox.kill(), true)
  },
  async metrics() {
    const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
    const end = Date.now() + 30_000
    let found = []
    while (!(found = await sandbox.getMetrics()).length) {
      assert.ok(Date.now() < end)
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
    assert.equal(found[0].cpuCount, 1)
    assert.equal(await sandbox.kill(), true)
  },
  async network() {
    const sandbox = await Sandbox.create({ timeoutMs: 120_000, allowInternetAccess: false })
    await sandbox.updateNetwork({ allowOut: ['8.8.8.8'], denyOut: ['0.0.0.0/0'] })
    await sandbox.updateNetwork({ allowOut: ['example.com', '*.example.org'], denyOut: ['0.0.0.0/0'] })
    await assert.rejects(sandbox.updateNetwork({ allowOut: ['example.com'] }), SandboxError)
    await sandbox.updateNetwork({})
    await assert.rejects(sandbox.updateNetwork({ denyOut: ['example.com'] }), SandboxError)
    assert.equal(await sandbox.kill(), true)
  },
}

for (const section of process.argv.slice(2)) {
  await sections[section]()
  console.log('done', section)
}
