// The kernel for JavaScript and TypeScript: Node's REPL evaluator, so that top-level await works and declarations stay, behind the protocol of kernel.py.
'use strict';
const net = require('node:net');
const fs = require('node:fs');
const repl = require('node:repl');
const util = require('node:util');
const path = require('node:path');
const { PassThrough } = require('node:stream');
const { stripTypeScriptTypes, createRequire } = require('node:module');

const control = new net.Socket({ fd: Number(process.argv[2]) });
const typed = process.argv[3] === 'typescript';
const generationFile = process.argv[4];
const evaluator = repl.start({ input: new PassThrough(), output: new PassThrough(), prompt: '', terminal: false, useGlobal: true, breakEvalOnSigint: true });
process.argv = [process.argv[0]];
globalThis.require = createRequire(path.join(process.cwd(), 'cell.js'));

const MIMES = ['text/html', 'text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/latex', 'application/json', 'application/javascript'];
const send = (event) => control.write(JSON.stringify(event) + '\n');

function bundle(value) {
  const data = { 'text/plain': typeof value === 'string' ? value : util.inspect(value) };
  // Objects may show themselves as in other kernels: a method _toMime() that returns {mime: content}.
  if (value && typeof value._toMime === 'function') Object.assign(data, value._toMime());
  return data;
}

globalThis.display = (value) => {
  const known = value && typeof value === 'object' && Object.keys(value).length > 0 && Object.keys(value).every((key) => key === 'text/plain' || MIMES.includes(key));
  send({ event: 'display', data: known ? value : bundle(value), metadata: {}, transient: {} });
};

// Output is written at once and in order: descriptors 1 and 2 are pipes, and a kernel's print must be there before its next event.
for (const [stream, fd] of [[process.stdout, 1], [process.stderr, 2]]) {
  stream.write = (chunk, encoding, done) => {
    const callback = typeof encoding === 'function' ? encoding : done;
    let rest = typeof chunk === 'string' ? Buffer.from(chunk, typeof encoding === 'string' ? encoding : 'utf8') : Buffer.from(chunk);
    while (rest.length) {
      try { rest = rest.subarray(fs.writeSync(fd, rest)); } catch (error) { if (error.code !== 'EAGAIN') throw error; }
    }
    if (callback) process.nextTick(callback);
    return true;
  };
}

let generation = readGeneration();
function readGeneration() { try { return fs.readFileSync(generationFile, 'utf8'); } catch { return ''; } }

// V8's generator cannot be seeded anew. In a clone its place is taken by the kernel's randomness.
function renewRandom() {
  const now = readGeneration();
  if (now === generation) return;
  generation = now;
  const file = fs.openSync('/dev/urandom', 'r');
  const block = Buffer.alloc(4096);
  let left = 0;
  Math.random = () => {
    if (left < 8) { fs.readSync(file, block, 0, block.length, null); left = block.length; }
    left -= 8;
    return Number(block.readBigUInt64LE(left) >> 11n) / 9007199254740992;
  };
}

let interrupt = null;
const interrupted = () => { if (interrupt) interrupt(); };
process.on('SIGINT', interrupted);
process.on('uncaughtException', (error) => { if (interrupt) interrupt(error); else process.stderr.write(util.inspect(error) + '\n'); });

function evaluate(code) {
  return new Promise((resolve, reject) => {
    const stop = (error) => reject(error || Object.assign(new Error(''), { name: 'KeyboardInterrupt' }));
    interrupt = stop;
    // Errors of the cell are raised in the evaluator's domain, where there is one, and not handed to the callback.
    if (evaluator._domain) { evaluator._domain.removeAllListeners('error'); evaluator._domain.on('error', stop); }
    // While code runs without awaiting, the evaluator watches for SIGINT itself, and takes our handler away with its own: it is set again afterwards.
    process.removeListener('SIGINT', interrupted);
    try {
      evaluator.eval(code + '\n', evaluator.context, 'cell', (error, value) => (error ? reject(error) : resolve(value)));
    } finally {
      process.on('SIGINT', interrupted);
    }
  });
}

function environment(added) {
  const before = Object.entries(added).map(([name]) => [name, process.env[name]]);
  Object.assign(process.env, added);
  return () => before.forEach(([name, value]) => { if (value === undefined) delete process.env[name]; else process.env[name] = value; });
}

function failure(error) {
  const real = error instanceof repl.Recoverable ? error.err : error;
  const thrown = real && typeof real === 'object' && 'message' in real;
  const lines = thrown && real.stack ? String(real.stack).split('\n').filter((line) => !line.includes('kernel.js') && !line.includes('node:') && !line.includes('at new Promise (<anonymous>)')) : [];
  const name = thrown ? (real.name || 'Error') : 'Error';
  const stopped = name === 'KeyboardInterrupt' || (real && real.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED');
  return { event: 'error', name: stopped ? 'KeyboardInterrupt' : name, value: stopped ? '' : thrown ? String(real.message) : util.inspect(real), traceback: stopped ? [] : lines };
}

async function run(request) {
  renewRandom();
  const restore = environment(request.env || {});
  let ok = true;
  try {
    const code = typed ? stripTypeScriptTypes(request.code) : request.code;
    const value = await evaluate(code);
    if (value !== undefined) send({ event: 'result', data: bundle(value), metadata: {} });
  } catch (error) {
    ok = false;
    send(failure(error));
  } finally {
    interrupt = null;
    restore();
  }
  send({ event: 'done', ok });
}

let rest = '';
control.setEncoding('utf8');
control.on('data', (piece) => {
  const lines = (rest + piece).split('\n');
  rest = lines.pop();
  for (const line of lines) {
    const request = JSON.parse(line);
    if (request.op === 'run') run(request); else send({ event: 'done', ok: true });
  }
});
control.on('end', () => process.exit(0));
