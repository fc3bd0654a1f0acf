/** Nothing is allocated per packet in the loop of a datapath thread: serving, arming, looking, signalling. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { domain } from '../../../src/abi/index.ts';
import { CTL, Kloop } from '../../../src/kloop/index.ts';
import { eventfd, eventfdRead } from '../../../src/os/index.ts';
import { frame, mac, Rig } from '../datapath/rig.ts';

test('a million packets, an interrupt for each batch, and the heap does not grow', () => {
  const rig = new Rig();
  const [a, b] = [rig.addPort(), rig.addPort()];
  const [tx, rx] = [a.tx[0]!, b.rx[0]!];
  const ctl = new Int32Array(new SharedArrayBuffer(4 * CTL.LENGTH));
  // The rig has made its switch already.
  const datapath = { ...rig.dp, valeInit: () => {} };
  const kloop = new Kloop(rig.arena, datapath, ctl, { takeMail: () => {}, onTrap: () => {}, onUnwatched: () => {} });
  kloop.execute({ op: 'domain-add', domain: rig.domain });
  const fd = eventfd();
  kloop.execute({ op: 'irq', irqs: [{ kring: rx.kr, fd }] });
  for (let i = 0; i < 32; i++) {
    tx.put(frame(mac(2), mac(1), 60, i));
    tx.publish();
    kloop.turn();
  }
  let moved = 0;
  const rounds = (n: number): void => {
    for (let i = 0; i < n; i++) {
      tx.head = (tx.head + 31) % 32;
      tx.publish();
      rx.publish(rx.hwtail);
      rx.needKick(true);
      moved += kloop.turn();
    }
  };
  rounds(4000);
  const before = process.memoryUsage().heapUsed;
  rounds(33_000);
  const grown = process.memoryUsage().heapUsed - before;
  assert.ok(moved > 1_000_000, `${moved} packets`);
  assert.ok(eventfdRead(fd) > 30_000n, 'interrupts were asked for and written');
  assert.ok(domain.get.num_signals(rig.m, rig.domain) === 0);
  // The smallest object for each packet would be 12 megabytes; what is allowed is the runtime's own and a bigint or two a batch.
  assert.ok(grown < 2_000_000, `${grown} bytes for a million packets`);
  kloop.close();
  rig.close();
});
