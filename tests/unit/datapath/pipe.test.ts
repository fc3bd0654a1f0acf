/** Pipes and null ports on their own: arming (R11), bad indexes (R7), what a receiver sees; ports that change their switch. */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { kring, NS_MOREFRAG, nm_csb_atok, nm_csb_ktoa } from '../../../src/abi/index.ts';
import { drainSignals } from '../../../src/kloop/datapath.ts';
import { Chain } from '../../props/pipe-rig.ts';
import { BROADCAST, frame, mac, Rig } from './rig.ts';

const kick = (chain: Chain, ring: { ktoa: number }): number => nm_csb_ktoa.get.kern_need_kick(chain.m, ring.ktoa);

describe('pipes: wake-ups and faults', () => {
  const chains: Chain[] = [];
  after(() => {
    for (const chain of chains) chain.arena.unmap(0, chain.arena.bytes);
  });
  const make = () => {
    const chain = new Chain(4096);
    chains.push(chain);
    for (const end of chain.ends) chain.start(end);
    const [a, b] = chain.ends as [(typeof chain.ends)[0], (typeof chain.ends)[0]];
    const [domain] = chain.domains as [number];
    const settle = (): void => {
      while (chain.dp.serve(domain) > 0);
      chain.dp.arm(domain);
    };
    settle();
    return { chain, dp: chain.dp, a, b, domain, settle };
  };
  const put = (ring: { put: (bytes: Uint8Array, flags?: number) => void; publish: () => void }, n: number): void => {
    for (let i = 0; i < n; i++) ring.put(new Uint8Array(20));
    ring.publish();
  };

  it('R11: an rx ring is armed only while its sender is out of room', () => {
    const { chain, dp, a, b, domain, settle } = make();
    assert.deepEqual([kick(chain, a.tx), kick(chain, b.rx)], [1, 0], 'drained');
    put(a.tx, 3);
    settle();
    assert.deepEqual([kick(chain, a.tx), kick(chain, b.rx)], [1, 0], 'room left');
    put(a.tx, 4);
    settle();
    assert.deepEqual([kick(chain, a.tx), kick(chain, b.rx)], [1, 1], 'full: the receiver’s release is waited for');
    assert.equal(dp.look(domain), 0);
    b.rx.take();
    b.rx.publish();
    assert.equal(dp.look(domain), 1, 'released');
    settle();
    assert.equal(kick(chain, b.rx), 0);
    assert.equal(a.tx.avail, 7);
  });

  it('R11: a sender that runs out of room after the arming gets its receiver armed by the next look', () => {
    const { chain, dp, a, b, domain, settle } = make();
    put(a.tx, 5);
    settle();
    assert.equal(kick(chain, b.rx), 0);
    nm_csb_atok.set.cur(chain.m, a.tx.atok, a.tx.hwtail); // waits for more, sends nothing
    assert.equal(dp.look(domain), 0);
    assert.equal(kick(chain, b.rx), 1);
  });

  it('what receivers released is taken back also while nobody sends', () => {
    const { dp, a, b, domain, settle } = make();
    put(a.tx, 5);
    settle();
    b.rx.take();
    b.rx.publish();
    assert.equal(dp.look(domain), 1);
    settle();
    assert.equal(a.tx.avail, 7);
  });

  it('R7: a bad head is put right once and keeps nobody awake; the other side goes on', () => {
    const { chain, dp, a, b, domain, settle } = make();
    put(a.tx, 2);
    settle();
    b.rx.publish(99);
    for (let i = 0; i < 5; i++) dp.serve(domain);
    assert.equal(kring.get.repairs(chain.m, b.rx.kr), 1n);
    dp.arm(domain);
    assert.equal(dp.look(domain), 0);
    put(a.tx, 2);
    settle();
    assert.equal(b.rx.hwtail, 4);
    a.tx.publish(77);
    for (let i = 0; i < 5; i++) dp.serve(domain);
    assert.equal(kring.get.repairs(chain.m, a.tx.kr), 1n);
    dp.arm(domain);
    assert.equal(dp.look(domain), 0);
    b.rx.publish(4);
    settle();
    assert.equal(a.tx.hwtail, 3, 'released, whatever the sender’s head says');
  });

  it('R6: a packet is seen when it is whole; one that fills the ring is cut there', () => {
    const { a, b, settle } = make();
    a.tx.put(new Uint8Array(20), NS_MOREFRAG);
    a.tx.put(new Uint8Array(20), NS_MOREFRAG);
    a.tx.publish();
    settle();
    assert.equal(b.rx.hwtail, 0);
    a.tx.put(new Uint8Array(20));
    a.tx.publish();
    settle();
    assert.equal(b.rx.take().length, 3);
    b.rx.publish();
    settle();
    for (let i = 0; i < 7; i++) a.tx.put(new Uint8Array(20), NS_MOREFRAG);
    a.tx.publish();
    settle();
    const got = b.rx.take();
    assert.deepEqual(
      got.map((frag) => frag.flags & NS_MOREFRAG),
      [NS_MOREFRAG, NS_MOREFRAG, NS_MOREFRAG, NS_MOREFRAG, NS_MOREFRAG, NS_MOREFRAG, 0],
    );
  });

  it('prebuilt packets stay in place: what comes back is what was sent', () => {
    const { chain, a, b, settle } = make();
    const before = Array.from({ length: 7 }, (_, k) => a.tx.bufIdx(k));
    for (let round = 0; round < 5; round++) {
      put(a.tx, 7);
      settle();
      assert.deepEqual(
        b.rx.take().map((frag) => frag.len),
        [20, 20, 20, 20, 20, 20, 20],
      );
      b.rx.publish();
      settle();
    }
    assert.deepEqual(new Set(Array.from({ length: 8 }, (_, k) => a.tx.bufIdx(k))).size, 8);
    assert.deepEqual(
      Array.from({ length: 7 }, (_, k) => a.tx.bufIdx(k)),
      before,
    );
    assert.equal(kring.get.packets(chain.m, b.rx.kr), 35n);
  });
});

describe('null ports and ports that move', () => {
  const rig = new Rig();
  after(() => rig.close());

  it('R11: a null port’s rx ring is armed whenever the thread is to sleep; its ring is full again after a turn', () => {
    const d = rig.anonymous(128 * 1024);
    rig.dp.nullInit(d);
    const p = rig.addPort({ stopped: true });
    rig.dp.valeAttach(d, p.port);
    const [tx, rx] = [p.tx[0]!, p.rx[0]!];
    for (const ring of [tx, rx]) rig.dp.krStart(ring.kr);
    assert.equal(rig.dp.serve(d), 31);
    assert.equal(rx.avail, 31);
    rig.dp.arm(d);
    assert.equal(nm_csb_ktoa.get.kern_need_kick(rig.m, rx.ktoa), 1);
    assert.equal(rig.dp.look(d), 0);
    rx.take();
    rx.publish();
    assert.equal(rig.dp.look(d), 1);
    for (let i = 0; i < 10; i++) tx.put(frame(BROADCAST, mac(1)));
    tx.publish();
    assert.equal(rig.dp.serve(d), 31 + 10);
    assert.deepEqual([tx.avail, tx.count('packets'), tx.count('bytes')], [31, 10, 600]);
  });

  it('a running port goes to another switch and back; neither switch keeps anything of it', () => {
    const d = rig.anonymous(128 * 1024);
    rig.dp.valeInit(d);
    const [a, b] = [rig.addPort(), rig.addPort()];
    const send = (from: typeof a, to: number): void => {
      from.tx[0]!.put(frame(mac(to), mac(from.id + 100)));
      from.tx[0]!.publish();
      rig.serve();
      rig.dp.serve(d);
      rig.signals();
      drainSignals(rig.m, d, () => undefined);
    };
    send(a, 1);
    send(b, a.id + 100);
    assert.equal(a.rx[0]!.receive().length, 1);
    b.rx[0]!.receive();
    assert.equal(rig.dp.valeMove(d, rig.domain, a.port), -22, 'EINVAL: not there');
    assert.equal(rig.dp.valeMove(rig.domain, d, a.port), 0);
    send(a, b.id + 100);
    send(b, a.id + 100);
    assert.deepEqual([a.rx[0]!.receive(), b.rx[0]!.receive()], [[], []]);
    assert.equal(rig.dp.valeMove(d, rig.domain, a.port), a.id);
    send(a, b.id + 100);
    assert.equal(b.rx[0]!.receive().length, 1);
    rig.dp.krStop(a.tx[0]!.kr);
    rig.dp.krStop(a.rx[0]!.kr);
    assert.equal(rig.dp.valeDetach(rig.domain, a.port), 0);
  });
});
