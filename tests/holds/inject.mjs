/**
 * Loaded into every thread of a daemon (NODE_OPTIONS=--import): makes one thread fail once a file exists. PTNET_FAULT is
 * THREAD:WHAT (main, devices, datapath; throw, block, reject, trap), PTNET_FAULT_FILE the file. datapath:start: the first
 * datapath thread makes the file, and the others do not start. A thread that blocks writes FILE.blocked first. generator:exit, for pkt-gen -p: its threads end.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import workers from 'node:worker_threads';

const [where, what] = (process.env.PTNET_FAULT ?? ':').split(':');
const file = process.env.PTNET_FAULT_FILE ?? '';
const { isMainThread, workerData } = workers;
const { ctl, threads, job } = workerData ?? {};
const here = isMainThread ? 'main' : ctl ? 'datapath' : threads ? 'devices' : job ? 'generator' : '';

/** A native call that does not return for a long time: poll(2) of nothing. */
async function blocker() {
  const { libc } = await import(new URL('../../dist/src/os/libc.js', import.meta.url).href);
  return () => libc.poll(0, 0, 600_000);
}

if (here === where && here !== '') {
  const block = what === 'block' ? await blocker() : undefined;
  const fail = () => {
    if (what === 'block') {
      writeFileSync(`${file}.blocked`, '');
      return block();
    }
    if (what === 'exit') process.exit(0);
    if (what === 'reject') return void Promise.reject(new Error(`injected into ${here}`));
    throw what === 'trap' ? new WebAssembly.RuntimeError('injected trap') : new Error(`injected into ${here}`);
  };
  if (what === 'start') {
    try {
      writeFileSync(file, '', { flag: 'wx' });
    } catch {
      fail();
    }
  } else if (here !== 'datapath') {
    const timer = setInterval(() => {
      if (!existsSync(file)) return;
      clearInterval(timer);
      fail();
    }, 20);
    timer.unref();
  } else if (what === 'trap') {
    // What serve throws stops the domain.
    const { Instance } = WebAssembly;
    WebAssembly.Instance = function instance(...args) {
      const { exports } = new Instance(...args);
      return { exports: { ...exports, serve: (d) => (existsSync(file) ? fail() : exports.serve(d)) } };
    };
  } else {
    // The thread never returns to its event loop: it fails when it takes its mail.
    const { receiveMessageOnPort } = workers;
    workers.receiveMessageOnPort = (port) => {
      if (existsSync(file)) fail();
      return receiveMessageOnPort(port);
    };
    syncBuiltinESMExports();
  }
}
