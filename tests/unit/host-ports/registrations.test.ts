/** Several opens of one port, on disjoint rings; which selections are refused, and why; null ports. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { BROADCAST, frame, mac } from '../datapath/rig.ts';
import { POLLIN } from '../../../src/api/index.ts';
import { fill, Lab, range, take } from './support.ts';

let lab: Lab;
before(async () => {
  lab = await Lab.start();
});
after(() => lab.stop());

const refused = (name: string, code: string, why: RegExp): Promise<void> =>
  assert.rejects(lab.open(name), (e: NodeJS.ErrnoException) => {
    assert.equal(e.code, code, e.message);
    assert.match(e.message, why);
    return true;
  });

test('a port of four rings, opened ring by ring: each open has its own, overlaps are refused', async () => {
  const whole = 'netmap:four{x@conf:rings=4,slots=16';
  const two = await lab.open('netmap:four{x-2@conf:rings=4,slots=16');
  assert.deepEqual([two.txRings.length, two.rxRings.length, two.txRings[0]!.numSlots], [1, 1, 16]);
  await refused('netmap:four{x-2', 'EBUSY', /process \d+ has it or some of these rings open/);
  await refused(whole, 'EBUSY', /some of these rings/);
  await refused('netmap:four{x-4', 'EINVAL', /there is no ring 4: 4 tx, 4 rx/);
  const rx0 = await lab.open('netmap:four{x-0/R');
  const tx0 = await lab.open('netmap:four{x-0/T');
  assert.deepEqual([rx0.txRings.length, rx0.rxRings.length, tx0.txRings.length, tx0.rxRings.length], [0, 1, 1, 0]);
  const peer = await lab.open('netmap:four}x');
  assert.equal(peer.rxRings.length, 4);
  fill(two, two.txRings[0]!, 200, 5);
  fill(tx0, tx0.txRings[0]!, 0, 5);
  fill(peer, peer.txRings[0]!, 900, 2);
  const got: number[][] = [[], [], [], []];
  for (let i = 0; i < 1000 && got.flat().length < 10; i++) {
    peer.poll(POLLIN, 10);
    for (const [r, ring] of peer.rxRings.entries()) got[r]!.push(...take(peer, ring));
  }
  assert.deepEqual(got, [range(0, 5), [], range(200, 5), []], 'ring 2 of the port is ring 2 at its other end');
  assert.equal(rx0.poll(POLLIN, 2000), POLLIN);
  assert.deepEqual(take(rx0, rx0.rxRings[0]!), range(900, 2));
  await lab.close(two);
  await lab.until(([d]) => d!.ports.filter((p) => p.name.startsWith('netmap:four{x')).length === 2);
  const rest = await lab.open('netmap:four{x-2');
  await lab.close(rest, rx0, tx0, peer);
  await lab.until((domains, regions) => domains.length === 0 && regions.length === 0);
});

test('/x: an exclusive open wants the whole port for itself', async () => {
  const a = await lab.open('vale7:e-0@conf:rings=2');
  await refused('vale7:e-1/x', 'EBUSY', /is open, so that it cannot be had exclusively/);
  await lab.close(a);
  await lab.until((domains) => domains.length === 0);
  const x = await lab.open('vale7:e-0/x@conf:rings=2');
  await refused('vale7:e-1', 'EBUSY', /is open exclusively \(\/x\) by process/);
  await lab.close(x);
});

test('what these ports do not have is refused with its reason', async () => {
  await refused('vale7:h^', 'EINVAL', /host rings .* NIC/);
  await refused('vale7:h*', 'EINVAL', /host rings/);
  await refused('vale7:h/RT', 'EINVAL', /leave no ring/);
  await refused('vale7:h/t', 'ENOENT', /no port vale7:h to be monitored/);
  await refused('netmap:nosuch', 'ENXIO', /vale-ctl -n nosuch/);
  await refused('vale7:h@conf:slots=5000', 'EINVAL', /from 2 to 4096/);
  await refused('vale7:h@conf:rings=16', 'EINVAL', /at most 23 in all/);
  await refused('vale7:h@offset:initial=2', 'EINVAL', /no way to agree on offsets/);
  await lab.until((domains, regions) => domains.length === 0 && regions.length === 0);
});

test('a switch port of two rings, each open in another hand: frames reach the ring of the sender’s number', async () => {
  const a = await lab.open('vale8:a@conf:rings=2');
  const b0 = await lab.open('vale8:b-0@conf:rings=2');
  const b1 = await lab.open('vale8:b-1');
  const put = (port: typeof a, i: number, bytes: Uint8Array): void => {
    const ring = port.txRings[i]!;
    port.m.u8.set(bytes, ring.bufOfs(ring.head));
    ring.setLen(ring.head, bytes.length);
    ring.head = ring.cur = ring.next(ring.head);
    port.txsync();
  };
  put(b1, 0, frame(BROADCAST, mac(2)));
  assert.equal(a.poll(POLLIN, 2000), POLLIN);
  put(a, 1, frame(mac(2), mac(1)));
  assert.equal(b1.poll(POLLIN, 2000), POLLIN);
  assert.equal(b1.rxRings[0]!.space(), 1);
  put(a, 0, frame(mac(2), mac(1)));
  assert.equal(b0.poll(POLLIN, 2000), POLLIN);
  await lab.close(a, b0, b1);
});

test('null: takes everything, gives without end', async () => {
  const n = await lab.open('null:n', { txSlots: 16, rxSlots: 16 });
  let sent = 0;
  for (let i = 0; i < 10_000 && sent < 100; i++) {
    n.poll(4, 10);
    sent += fill(n, n.txRings[0]!, sent, 100 - sent);
  }
  assert.equal(sent, 100);
  let got = 0;
  const ring = n.rxRings[0]!;
  while (got < 100) {
    assert.equal(n.poll(POLLIN, 2000), POLLIN);
    for (; ring.head !== ring.tail; ring.head = ring.cur = ring.next(ring.head)) {
      assert.equal(ring.len(ring.head), 60);
      got++;
    }
    n.rxsync();
  }
  await lab.until(([d]) => d!.kind === 'null' && d!.ports[0]!.txRings[0]!.packets === 100);
  await lab.close(n);
});
