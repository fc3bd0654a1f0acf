/** Monitors beyond netmap's scenarios (tests/netmap-utils): several of them, their end and their port's, rings, rights. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { listDaemon, type NetmapPort, NS_TXMON, openDevice, POLLIN, valeCtl } from '../../../src/api/index.ts';
import { mayMonitor } from '../../../src/host/config.ts';
import { receive, send } from '../../netmap-utils/functional.ts';
import { Lab } from './support.ts';

let lab: Lab;
before(async () => {
  const vm = { trustUnsealedMemory: false };
  lab = await Lab.start({ vms: { web: { ports: ['vale9:web'], ...vm }, watch: { ports: ['vale9:web/tr'], ...vm } } });
});
after(() => lab.stop());

/** Regions of the two VMs, whose switch vale9 stays. */
const VM_REGIONS = 2;
const FRAMES = { len: 60, fill: 'a', num: 20 };
const gone = (count: number): Promise<void> =>
  lab.until((domains) => domains.filter((d) => d.name !== 'vale9').flatMap((d) => d.ports).length === count);

test('several copy monitors of one ring: all get everything, and so do those that stay when one goes', async () => {
  const [a, b] = [await lab.open('vale0:a'), await lab.open('vale0:b')];
  const all = [await lab.open('vale0:a/t'), await lab.open('vale0:a/tr'), await lab.open('vale0:a/t')];
  for (let left = 3; left > 0; left--) {
    assert.ok(send(a, FRAMES));
    receive(b, FRAMES);
    for (const monitor of all) receive(monitor, FRAMES, 'tx');
    await lab.close(all.splice(1 % left, 1)[0]!);
    await gone(1 + left);
  }
  assert.ok(send(a, FRAMES));
  receive(b, FRAMES);
  await lab.close(a, b);
});

test('zero-copy monitors are chained: the second gets what the first has read, and all when the first goes', async () => {
  const [a, b] = [await lab.open('vale0:a@z'), await lab.open('vale0:b@z')];
  const [first, second] = [await lab.open('vale0:b/z'), await lab.open('vale0:b/z')];
  assert.ok(send(a, FRAMES));
  receive(b, FRAMES);
  assert.equal(second.poll(POLLIN, 50), 0);
  receive(first, FRAMES);
  receive(second, FRAMES);
  await lab.close(first);
  await gone(3);
  assert.ok(send(a, FRAMES));
  receive(b, FRAMES);
  receive(second, FRAMES);
  // Both directions, and every buffer in one place only.
  assert.ok(send(b, FRAMES));
  receive(a, FRAMES);
  receive(second, FRAMES, 'tx');
  const buffers = [a, b, second].flatMap((port) =>
    [...port.txRings, ...port.rxRings].flatMap((ring) =>
      Array.from({ length: ring.numSlots }, (_, i) => ring.bufIdx(i)),
    ),
  );
  assert.equal(new Set(buffers).size, buffers.length);
  await lab.close(a, b, second);
  await lab.until((_, regions) => regions.length === VM_REGIONS);
});

test('R10: a monitor that is full loses packets and nobody else does; they are counted', async () => {
  const [a, b] = [await lab.open('netmap:f{1'), await lab.open('netmap:f}1')];
  const monitor = await lab.open('netmap:f{1/t@conf:rx-slots=8');
  for (let i = 0; i < 5; i++) {
    assert.ok(send(a, FRAMES));
    receive(b, FRAMES);
  }
  const status = (await lab.ports()).find((p) => p.name.startsWith('netmap:f{1/t'))!;
  assert.deepEqual([status.rxRings[0]!.packets, status.rxRings[0]!.drops], [7, { full: 93 }]);
  receive(monitor, { ...FRAMES, num: 7 }, 'tx');
  await lab.close(a, b, monitor);
});

test('more frames than a turn sends: a copy monitor sees each once', async () => {
  const many = { ...FRAMES, num: 1500 };
  const a = await lab.open('vale0:a@conf:tx-slots=2048');
  const monitor = await lab.open('vale0:a/t@conf:rx-slots=4096');
  assert.ok(send(a, many));
  receive(monitor, many, 'tx');
  assert.equal(monitor.rxRings[0]!.space(), 0);
  await lab.close(a, monitor);
});

test('one pair of rings of several, and as many rx rings as there are pairs', async () => {
  const a = await lab.open('vale0:a@conf:tx-rings=3,rx-rings=2');
  const [all, one] = [await lab.open('vale0:a/t'), await lab.open('vale0:a-2/t')];
  assert.deepEqual([all.rxRings.length, one.rxRings.length], [3, 1]);
  const fillRing = (port: NetmapPort, ring: number): void => {
    const tx = port.txRings[ring]!;
    port.m.u8.fill(255, tx.bufOfs(tx.head), tx.bufOfs(tx.head) + 60);
    tx.setLen(tx.head, 60);
    tx.head = tx.cur = tx.next(tx.head);
    port.txsync();
  };
  for (const ring of [0, 1, 2]) fillRing(a, ring);
  assert.equal(one.poll(POLLIN, 5000), POLLIN);
  assert.equal(one.rxRings[0]!.space(), 1);
  await lab.until(() => (all.rxsync(), all.rxRings.every((ring) => ring.space() === 1)));
  assert.ok(all.rxRings.every((ring) => (ring.flags(ring.head) & NS_TXMON) !== 0));
  await assert.rejects(lab.open('vale0:a-3/t'), { code: 'EINVAL', message: /no ring 3: the port has 3/ });
  await assert.rejects(lab.open('vale0:a^/t'), { code: 'ENOENT', message: /there is no port vale0:a\^/ });
  await assert.rejects(lab.open('vale0:a*/t'), { code: 'EINVAL', message: /host rings/ });
  await lab.close(a, all, one);
});

test('a monitor whose port goes hears of it', async () => {
  const a = await lab.open('vale0:a@z');
  const monitors = [await lab.open('vale0:a/r'), await lab.open('vale0:a/z')];
  await lab.close(a);
  for (const monitor of monitors) {
    await assert.rejects(monitor.wait(POLLIN, { timeoutMs: 5000 }), { code: 'ENODEV' });
    await lab.close(monitor);
  }
  await lab.until((domains, regions) => domains.length === 1 && regions.length === VM_REGIONS);
});

test('what is sent into a monitor goes nowhere', async () => {
  const a = await lab.open('vale0:a');
  const b = await lab.open('vale0:b');
  const monitor = await lab.open('vale0:a/tr');
  assert.ok(send(monitor, FRAMES));
  await lab.until((domains) => domains.flatMap((d) => d.ports).some((p) => p.txRings[0]!.drops['nodst'] === 20));
  assert.equal(b.poll(POLLIN, 20), 0);
  await lab.close(a, b, monitor);
});

test('refused with the reason: no such port, a zero-copy monitor where there is no room', async () => {
  await assert.rejects(lab.open('vale0:none/r'), { code: 'ENOENT', message: /no port vale0:none to be monitored/ });
  const a = await lab.open('vale0:a');
  await assert.rejects(lab.open('vale0:a/z'), { code: 'ENOMEM', message: /vale0:a@ID/ });
  await lab.close(a);
  await valeCtl({ letter: 'n', name: 'v0' }, lab.runDir);
  await assert.rejects(lab.open('netmap:v0/z'), { code: 'ENOMEM', message: /ptnet vale-ctl -n v0 -m ID/ });
  await valeCtl({ letter: 'r', name: 'v0' }, lab.runDir);
});

test('R19: extra buffers come back from a port that exchanged them with its neighbour’s', async () => {
  const keeper = await lab.open('vale0:k@x');
  const free = (await lab.regions()).find((r) => r.name === '@x')!.freeBuffers;
  const port = await lab.open('vale0:p@x', { extraBufs: 50 });
  assert.equal(port.extraBufs.length, 50);
  const buffers = (p: NetmapPort): number[] =>
    [...p.txRings, ...p.rxRings].flatMap((r) => Array.from({ length: r.numSlots }, (_, i) => r.bufIdx(i)));
  // Extra buffers go into the neighbour's ring, its own ones into nobody's hands.
  const tx = keeper.txRings[0]!;
  for (const [i, idx] of port.extraBufs.entries()) tx.setBufIdx(i, idx);
  await lab.close(port);
  await gone(1);
  assert.equal(new Set(buffers(keeper)).size, buffers(keeper).length);
  const again = await lab.open('vale0:p@x', { extraBufs: 50 });
  const all = [...buffers(keeper), ...buffers(again), ...again.extraBufs];
  assert.equal(new Set(all).size, all.length, 'no buffer in two hands');
  await lab.close(again);
  await lab.until((_, regions) => regions.some((r) => r.name === '@x' && r.freeBuffers === free));
  const many = await lab.open('vale0:m', { extraBufs: 3 });
  assert.equal(many.extraBufs.length, 3);
  await assert.rejects(lab.open('vale0:n', { extraBufs: -1 }), { code: 'EINVAL', message: /extraBufs -1/ });
  await lab.close(many, keeper);
});

test('a VM watches another VM’s port; who may watch whose is said by name, flags included', async () => {
  const { vms } = await listDaemon(lab.runDir);
  const [web, watch] = await Promise.all(vms.map(({ sockets }) => openDevice(sockets[0]!, sockets[1]!)));
  const other = await lab.open('vale9:other');
  assert.ok(send(other, FRAMES));
  receive(web!, FRAMES);
  receive(watch!, FRAMES);
  assert.ok(send(web!, FRAMES));
  receive(other, FRAMES);
  receive(watch!, FRAMES, 'tx');
  await watch!.close();
  await web!.close();
  await lab.close(other);
  const may = (ports: string[], name: string): boolean => mayMonitor({ ports, maxPorts: 1, maxMemory: 1 }, name);
  assert.deepEqual(
    [
      may(['vale1:*'], 'vale1:x/r'),
      may(['vale1:*/r'], 'vale1:x/r'),
      may(['vale1:*/r'], 'vale1:x/t'),
      may(['*'], 'a/r'),
    ],
    [false, true, false, true],
  );
});
