/** poll on several ports at once (src/api/port-set.ts). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { POLLIN, POLLOUT } from '../../../src/api/port.ts';
import { PortSet } from '../../../src/api/port-set.ts';
import { nm_csb_atok, nm_csb_ktoa } from '../../../src/abi/index.ts';
import { closeFd } from '../../../src/os/index.ts';
import { openFake } from './fake.ts';

test('poll on several ports: who is ready, time-outs, interrupts only meanwhile, the end of a daemon', async () => {
  const [a, b] = [await openFake({ slots: 8 }), await openFake({ slots: 8 })];
  const set = new PortSet([a.port, b.port]);
  assert.deepEqual(
    [set.events, set.revents],
    [
      [0, 0],
      [0, 0],
    ],
  );
  set.events.splice(0, 2, POLLIN, POLLIN);
  assert.equal(set.poll(0), 0);
  assert.equal(set.poll(5), 0);
  const [rxA, rxB] = [a.host.rxRings[0]!, b.host.rxRings[0]!];
  const armed = (): number[] => [
    nm_csb_atok.get.appl_need_kick(a.host.m, a.host.atok(rxA)),
    nm_csb_atok.get.appl_need_kick(b.host.m, b.host.atok(rxB)),
  ];
  assert.deepEqual(armed(), [0, 0]);
  b.host.deliver(rxB, [Buffer.from('x')]);
  b.host.publish(rxB);
  assert.equal(set.poll(-1), 1);
  assert.deepEqual(set.revents, [0, POLLIN]);
  set.events.splice(0, 2, POLLIN | POLLOUT, POLLOUT);
  assert.equal(set.poll(-1), 2);
  assert.deepEqual(set.revents, [POLLOUT, POLLOUT]);
  // An interrupt that is already there, or that comes of a kick, ends the sleep: the host loops a's packet back.
  set.events.splice(0, 2, POLLIN, 0);
  const tx = a.port.txRings[0]!;
  a.port.m.u8.set(Buffer.from('ping'), tx.bufOfs(tx.head));
  tx.setLen(tx.head, 4);
  tx.head = tx.cur = tx.next(tx.head);
  assert.equal(set.poll(2000), 1);
  assert.deepEqual(set.revents, [POLLIN, 0]);
  assert.deepEqual(armed(), [0, 0]);
  for (const { port } of [a, b]) port.rxRings[0]!.cur = port.rxRings[0]!.head = port.rxRings[0]!.tail;
  closeFd(b.socket);
  set.events[1] = POLLIN;
  assert.throws(() => set.poll(-1), { code: 'ENODEV', message: /the daemon of port fake0:x is gone/ });
  assert.deepEqual(armed(), [0, 0]);
  b.host.ptnet.end('end of file');
  await a.port.close();
  await b.port.close();
  closeFd(a.socket);
});

test('poll on several ports: one whose device has no interrupts is looked at all the same', async () => {
  const [a, b] = [await openFake({ slots: 8, pollMs: 1 }), await openFake({ slots: 8 })];
  const set = new PortSet([a.port, b.port]);
  set.events.splice(0, 2, POLLIN, POLLIN);
  assert.equal(set.poll(5), 0);
  // poll blocks this thread: another one moves the tail, tells nobody, and ends a sleep that this does not.
  const [rx] = a.host.rxRings;
  const { buffer } = a.host.m.i32;
  const state = new Int32Array(new SharedArrayBuffer(4));
  const word = (a.host.ktoa(rx!) + nm_csb_ktoa.ofs.hwtail) >>> 2;
  const worker = new Worker(
    `const { workerData: d } = require('node:worker_threads');
    setTimeout(() => Atomics.store(new Int32Array(d.buffer), d.word, d.tail), 20);
    setTimeout(() => {
      Atomics.store(d.state, 0, 1);
      require('node:fs').writeSync(d.fd, new Uint8Array([1, 0, 0, 0, 0, 0, 0, 0]));
    }, 20_000);`,
    { eval: true, workerData: { buffer, word, tail: 1, state, fd: a.host.ptnet.msix[rx!.index] } },
  );
  assert.equal(set.poll(-1), 1);
  assert.deepEqual([set.revents, state[0]], [[POLLIN, 0], 0]);
  await worker.terminate();
  for (const { port, socket } of [a, b]) {
    await port.close();
    closeFd(socket);
  }
});

test('poll: a signal ends it, also where the device has no interrupts', async () => {
  const { host, port, socket } = await openFake({ slots: 8, pollMs: 1000 });
  const set = new PortSet([port]);
  set.events[0] = POLLIN;
  const ignore = (): void => undefined;
  process.on('SIGUSR2', ignore);
  const word = (host.ktoa(host.rxRings[0]!) + nm_csb_ktoa.ofs.hwtail) >>> 2;
  // Again and again, as one may come while this thread does not sleep; after 20 s packets end it.
  const state = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(
    `const { workerData: d } = require('node:worker_threads');
    setInterval(() => process.kill(process.pid, 'SIGUSR2'), 20);
    setTimeout(() => (Atomics.store(d.state, 0, 1), Atomics.store(new Int32Array(d.buffer), d.word, 1)), 20_000);`,
    { eval: true, workerData: { buffer: host.m.i32.buffer, word, state } },
  );
  assert.equal(port.poll(POLLIN, -1), 0);
  assert.equal(set.poll(-1), 0);
  assert.equal(state[0], 0);
  await worker.terminate();
  process.off('SIGUSR2', ignore);
  await port.close();
  closeFd(socket);
});
