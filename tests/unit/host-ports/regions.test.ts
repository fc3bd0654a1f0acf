/** Regions by name, who shares what with whom, and that everything is given back. */
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { after, before, test } from 'node:test';
import type { NetmapPort } from '../../../src/api/index.ts';
import { openDevice, POLLIN, POLLOUT } from '../../../src/api/index.ts';
import { bootMachine, fill, Lab, pump, range, take } from './support.ts';

let lab: Lab;
const chain = ['netmap:in}1@chain', 'netmap:out{1@chain'];
before(async () => {
  lab = await Lab.start({
    regions: { tiny: { buffers: 100, rings: 4, interfaces: 4, slots: 32 } },
    vms: { box: { ports: ['vale0:box', ...chain], trustUnsealedMemory: false } },
  });
});
after(() => lab.stop());

test('@ID and @share: ports of one region; the region goes with its last port', async () => {
  const earlier = (await lab.regions()).length;
  const a = await lab.open('vale0:a@5');
  const b = await lab.open('vale0:b@5');
  const c = await lab.open('vale0:c@share=vale0:a');
  const five = (await lab.regions()).find((r) => r.name === '@5')!;
  assert.equal(five.memId, 5);
  assert.equal(five.buffers - 2 - five.freeBuffers, 3 * 2048);
  assert.equal((await lab.regions()).length, earlier + 1);
  await assert.rejects(lab.open('vale0:a-0@6'), /exists in another region \(@5\)/);
  await assert.rejects(lab.open('vale0:d@share=vale0:nobody'), /there is no port vale0:nobody/);
  await assert.rejects(
    lab.open('vale0:d@5', { bufSize: 4096 }),
    /bufSize 4096, but region @5 has buffers of 2112 bytes/,
  );
  await lab.close(a, b, c);
  await lab.until((_, regions) => regions.length === earlier);
});

test('a full region says of what, how much is wanted and what to change; nothing is kept', async () => {
  const shape = { txSlots: 32, rxSlots: 32 };
  const a = await lab.open('vale0:a@tiny', shape);
  await assert.rejects(lab.open('vale0:b@tiny', shape), (e: NodeJS.ErrnoException) => {
    assert.equal(e.code, 'ENOMEM');
    assert.match(
      e.message,
      /region "@tiny" has 4 free buffers, 32 wanted: raise buffers of the region in the configuration/,
    );
    return true;
  });
  await assert.rejects(lab.open('vale0:b@tiny', { txSlots: 64, rxSlots: 2 }), /rings of at most 32 slots, 64 wanted/);
  const tiny = (await lab.regions()).find((r) => r.name === '@tiny')!;
  assert.deepEqual([tiny.freeBuffers, tiny.freeRings, tiny.freeInterfaces], [36, 2, 3]);
  await lab.close(a);
});

test('a VM’s own region is nobody else’s', async () => {
  await assert.rejects(lab.open('vale0:x@share=vale0:box'), (e: NodeJS.ErrnoException) => {
    assert.equal(e.code, 'EPERM');
    assert.match(e.message, /its memory is that of VM box .*name a region/);
    return true;
  });
});

test('a VM has a memdev socket for each region its ports lie in, however their names say it', async () => {
  const at = await Lab.start({
    vms: {
      // Three names of one, one region: by @ID, by @share, and where the port that is watched lies.
      zero: { ports: ['vale0:a@lab'], trustUnsealedMemory: false },
      one: { ports: ['vale0:b@lab', 'vale0:e@share=vale0:a', 'vale0:a/z'], trustUnsealedMemory: false },
      // None of the names says a region, but the second port lies in one.
      two: { ports: ['vale0:c', 'vale0:d@share=vale0:a'], trustUnsealedMemory: false },
    },
  });
  try {
    const [, one, two] = at.daemon.status().vms;
    const names = (sockets: readonly string[]): string[] => sockets.map((path) => path.replace(/^.*\/vm\//, ''));
    assert.deepEqual(names(one!.sockets), ['one/memdev.sock', 'one/ptnet0.sock', 'one/ptnet1.sock', 'one/ptnet2.sock']);
    assert.deepEqual(names(two!.sockets), [
      'two/memdev.sock',
      'two/memdev1.sock',
      'two/ptnet0.sock',
      'two/ptnet1.sock',
    ]);
    for (const path of [...one!.sockets, ...two!.sockets]) assert.ok(existsSync(path), path);
    const [, memdev, , shared] = two!.sockets;
    const { ports, off } = await bootMachine(memdev!, [shared!]);
    assert.equal(ports.length, 1);
    await off();
  } finally {
    await at.stop();
  }
});

/** The VM's ends of the chain: one memdev for each region. */
function boot(): ReturnType<typeof bootMachine> {
  const [, memdev, , from, to] = lab.daemon.status().vms[0]!.sockets;
  return bootMachine(memdev!, [from!, to!]);
}

test('a chain: generator, pipe, bridge in a machine with two pipe ends, pipe, sink: no copy, as buffer indexes prove', async () => {
  const { ports, off } = await boot();
  const [from, to] = ports as [NetmapPort, NetmapPort];
  const generator = await lab.open('netmap:in{1@chain');
  const sink = await lab.open('netmap:out}1@chain');
  const total = 5000;
  const sentIn: number[] = [];
  const gotIn: number[] = [];
  const got: number[] = [];
  let sent = 0;
  const deadline = performance.now() + 30_000;
  while (got.length < total) {
    assert.ok(performance.now() < deadline, `sent ${sent}, received ${got.length}`);
    const tx = generator.txRings[0]!;
    const head = tx.head;
    const n = sent < total ? fill(generator, tx, sent, Math.min(100, total - sent)) : 0;
    for (let i = 0, k = head; i < n; i++, k = tx.next(k)) sentIn.push(tx.bufIdx(k));
    sent += n;
    // The bridge: swaps buffers between its two rings, touches no byte.
    from.rxsync();
    to.txsync();
    const [rx, out] = [from.rxRings[0]!, to.txRings[0]!];
    while (rx.head !== rx.tail && out.head !== out.tail) {
      const [i, j] = [rx.head, out.head];
      const spare = out.bufIdx(j);
      out.setBufIdx(j, rx.bufIdx(i));
      out.setLen(j, rx.len(i));
      rx.setBufIdx(i, spare);
      rx.head = rx.cur = rx.next(i);
      out.head = out.cur = out.next(j);
    }
    to.poll(POLLOUT, 0);
    from.rxsync();
    sink.poll(POLLIN, 1);
    const end = sink.rxRings[0]!;
    for (; end.head !== end.tail; end.head = end.cur = end.next(end.head)) {
      gotIn.push(end.bufIdx(end.head));
      got.push(new DataView(sink.m.u8.buffer).getUint32(end.bufOfs(end.head)));
    }
    sink.rxsync();
    generator.poll(POLLOUT, 0);
  }
  assert.deepEqual(got, range(0, total));
  assert.deepEqual(gotIn, sentIn, 'each packet arrived in the buffer it was written to');
  await lab.close(generator, sink);
  await off();
  // The machine starts again: what its ends hold is put right, and everything works as before.
  const again = await boot();
  const g = await lab.open('netmap:in{1@chain');
  assert.deepEqual(pump(g, again.ports[0]!, 0, 2000), range(0, 2000));
  await lab.close(g);
  await again.off();
});

test('R21: a region that others made is used by those whom the configuration lets, by "@ID"', async () => {
  const uid = process.getuid!();
  const vms = { box: { ports: ['vale0:box@boxes'], trustUnsealedMemory: false } };
  const access = (ports: string[]) => new Map([[uid, { ports, maxPorts: 9, maxMemory: 2 ** 30 }]]);
  const strict = await Lab.start({ vms, users: access(['vale0:*']) });
  await assert.rejects(strict.open('vale0:x@boxes'), (e: NodeJS.ErrnoException) => {
    assert.equal(e.code, 'EPERM');
    assert.match(e.message, /memory is that of VM box .*let the user open "@boxes"/);
    return true;
  });
  await assert.rejects(strict.open('vale0:x@share=vale0:box'), { code: 'EPERM' });
  const own = await strict.open('vale0:x@mine');
  await strict.close(own);
  await strict.stop();
  const open = await Lab.start({ vms, users: access(['vale0:*', '@boxes']) });
  await open.close(await open.open('vale0:x@boxes'));
  await open.stop();
});

test('both ends as ports of machines: by @ID only, as it gives each the other’s memory', async () => {
  const vm = (port: string) => ({ ports: [port], trustUnsealedMemory: false });
  await assert.rejects(
    Lab.start({ vms: { a: vm('netmap:v{1'), b: vm('netmap:v}1') } }),
    /open netmap:v}1: its memory is that of VM a .*netmap:v}1@ID/,
  );
  const two = await Lab.start({ vms: { a: vm('netmap:v{1@both'), b: vm('netmap:v}1@both') } });
  const sockets = two.daemon.status().vms.map((v) => v.sockets);
  const ports = await Promise.all(sockets.map(([memdev, ptnet]) => openDevice(memdev!, ptnet!)));
  const [a, b] = ports as [NetmapPort, NetmapPort];
  assert.deepEqual(pump(a, b, 0, 3000), range(0, 3000));
  assert.deepEqual(pump(b, a, 7, 3000), range(7, 3000));
  assert.deepEqual(
    (await two.ports()).map((p) => [p.name, p.region]),
    [
      ['netmap:v{1', '@both'],
      ['netmap:v}1', '@both'],
    ],
  );
  for (const port of ports) await port.close();
  await two.stop();
});

test('R19: a process is killed between the two: all buffers are accounted for, the other end goes on with a new peer', async () => {
  const earlier = await lab.regions();
  const a = await lab.open('netmap:k{1@lab', { txSlots: 64, rxSlots: 64 });
  for (let round = 0; round < 3; round++) {
    const child = fork(new URL('./pipe-child.js', import.meta.url), [lab.runDir, 'netmap:k}1@lab']);
    const [said] = (await once(child, 'message')) as [string];
    assert.equal(said, 'open');
    fill(a, a.txRings[0]!, 0, 40);
    await once(child, 'message'); // it has received some, and swapped its slots' buffers about
    child.kill('SIGKILL');
    await once(child, 'exit');
    await lab.until((domains) =>
      domains.some((d) => d.ports.some((p) => p.name === 'netmap:k}1' && 'nobody' in p.owner)),
    );
    const b = await lab.open('netmap:k}1@lab');
    // What it left is taken, then everything must flow again, both ways, in order.
    for (let i = 0; i < 20; i++) take(b, b.rxRings[0]!);
    while (b.poll(POLLIN, 50) !== 0) take(b, b.rxRings[0]!);
    assert.deepEqual(pump(a, b, 1000, 500), range(1000, 500));
    while (a.poll(POLLIN, 50) !== 0) take(a, a.rxRings[0]!);
    assert.deepEqual(pump(b, a, 5000, 500), range(5000, 500));
    const held = new Set<number>();
    for (const port of [a, b]) {
      const ring = port.txRings[0]!;
      for (let k = 0; k < ring.numSlots; k++) held.add(ring.bufIdx(k));
    }
    assert.equal(held.size, 128, 'no buffer in two slots of the senders');
    await lab.close(b);
  }
  await lab.close(a);
  await lab.until((_, regions) => JSON.stringify(regions) === JSON.stringify(earlier));
});
