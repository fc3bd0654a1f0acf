/** One ring and its application: prologue, repair, publishing, arming, signals, starting and stopping. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it } from 'node:test';
import * as fc from 'fast-check';
import { KRING_RUNNING, KRING_STOPPED, kring, netmap_slot, nm_csb_atok, nm_csb_ktoa } from '../../../src/abi/index.ts';
import type { RigRing } from './rig.ts';
import { BROADCAST, frame, learnedRig, mac, Rig, STARTS } from './rig.ts';

/** nm_txsync_prologue, nm_rxsync_prologue as netmap.c has them (with the bound it forgets for cur). */
function netmapAccepts(lo: number, hi: number, head: number, cur: number, n: number): boolean {
  if (head >= n || cur >= n) return false;
  if (hi >= lo) return head >= lo && head <= hi && cur >= head && cur <= hi;
  if (head > hi && head < lo) return false;
  if (head <= hi) return cur >= head && cur <= hi;
  return !(cur > hi && cur < head);
}

for (const [where, start] of STARTS) {
  describe(`rings, ${where}`, () => {
    let rig: Rig;
    let tx: RigRing;
    let rx: RigRing;
    const toB = frame(mac(2), mac(1));
    const send = (n = 1) => {
      for (let i = 0; i < n; i++) tx.put(toB);
      tx.publish();
    };
    beforeEach(() => {
      rig = learnedRig(start, [{}, {}]);
      tx = rig.ports[0]!.tx[0]!;
      rx = rig.ports[1]!.rx[0]!;
    });
    afterEach(() => rig.close());

    it('txsync: hwcur goes to head, hwtail to the slot before it, all the way round', () => {
      for (let i = 0; i < 100; i++) {
        send(1 + (i % 31));
        rig.serve();
        rx.receive();
        assert.equal(tx.hwcur, tx.head);
        assert.equal(tx.next(tx.hwtail), tx.head);
        assert.equal(tx.avail, 31);
      }
    });

    it('R7: prologue accepts what netmap accepts: hwcur <= head <= cur <= hwtail in ring order', () => {
      const index = fc.oneof({ weight: 9, arbitrary: fc.nat(33) }, { weight: 1, arbitrary: fc.nat(0xffff_ffff) });
      const before = tx.head;
      fc.assert(
        fc.property(fc.nat(31), index, index, (lo, head, cur) => {
          // A ring that stands at lo, all slots free.
          const hi = (lo + 31) % 32;
          rig.dp.krStop(tx.kr);
          kring.set.hwcur(rig.m, tx.kr, lo);
          kring.set.hwtail(rig.m, tx.kr, hi);
          kring.set.rhead(rig.m, tx.kr, lo);
          kring.set.rcur(rig.m, tx.kr, lo);
          rig.dp.krStart(tx.kr);
          const repairs = tx.count('repairs');
          tx.publish(head, cur);
          const moved = rig.serve();
          if (head === lo) return moved === 0 && tx.count('repairs') === repairs;
          const ok = netmapAccepts(lo, hi, head, cur, 32);
          return moved === (ok ? (head - lo + 32) % 32 : 0) && ok === (tx.count('repairs') === repairs);
        }),
      );
      tx.head = before;
    });

    it('R7: a tx ring with a bad head is put right from private state, counted once, and does not keep anyone awake', () => {
      send(3);
      rig.serve();
      const { hwcur, hwtail } = tx;
      const was = { rhead: tx.count('rhead'), packets: tx.count('packets') };
      tx.publish(hwtail + 1 === 32 ? 0 : hwtail + 1 + 4000);
      assert.equal(rig.dp.look(rig.domain), 1, 'until it is counted');
      for (let i = 0; i < 5; i++) {
        assert.equal(rig.serve(), 0);
        assert.equal(rig.dp.look(rig.domain), 0);
      }
      tx.publish(70_000, 3);
      assert.equal(rig.dp.look(rig.domain), 0, 'another bad value does not count');
      rig.serve();
      assert.equal(tx.count('repairs'), 1);
      assert.equal(tx.count('faulty'), 1);
      assert.deepEqual([tx.count('hwcur'), tx.count('rhead'), tx.count('rcur')], [hwcur, was.rhead, was.rhead]);
      assert.deepEqual([tx.hwcur, tx.hwtail], [hwcur, hwtail], 'the CSB still says where the ring stands');
      send();
      assert.equal(rig.dp.look(rig.domain), 1);
      assert.equal(rig.serve(), 1);
      assert.equal(tx.count('faulty'), 0);
      assert.equal(tx.count('packets'), was.packets + 1);
      tx.publish(99);
      rig.serve();
      assert.equal(tx.count('repairs'), 2, 'a new fault counts again');
      tx.publish();
      rig.serve();
      assert.equal(tx.count('faulty'), 0, 'head where it was is valid too');
    });

    it('R7: an rx ring with a bad head keeps receiving what fits, and gives no slot back to the host meanwhile', () => {
      send(10);
      rig.serve();
      rx.take();
      rx.publish(31);
      send(31);
      rig.serve();
      assert.equal(rx.count('repairs'), 1);
      assert.equal(rx.count('faulty'), 1);
      assert.equal(rx.avail, 21, 'what was free before');
      assert.equal(rx.count('drop_full'), 10);
      rx.receive();
      send(5);
      rig.serve();
      assert.equal(rx.count('faulty'), 0);
      assert.equal(rx.avail, 5);
    });

    it('R6: in CSB mode the host ignores head, cur, tail and everything else of the netmap_ring', () => {
      const page = rig.m.u8.subarray(tx.ring, tx.ring + 256);
      page.fill(0xff);
      rig.m.u8.fill(0xff, rx.ring, rx.ring + 256);
      send(4);
      rig.serve();
      assert.equal(rx.receive().length, 4);
      assert.ok(page.every((b) => b === 0xff));
    });

    it('R8: a turn serves at most what head said when the turn came to the ring', () => {
      send(31);
      assert.equal(rig.serve(), 31);
      assert.equal(rig.serve(), 0);
    });

    it('R8: turns begin with another ring each time, so that a full receiver takes from everyone', () => {
      rig.close();
      rig = learnedRig(start, [{}, {}, { rxSlots: 8 }]);
      const [a, b, c] = rig.ports;
      const got: number[] = [0, 0];
      for (let i = 0; i < 20; i++) {
        for (const [k, p] of [a!, b!].entries()) {
          for (let s = 0; s < 20; s++) p.tx[0]!.put(frame(mac(3), mac(k + 1)));
          p.tx[0]!.publish();
        }
        rig.serve();
        for (const [f] of c!.rx[0]!.receive()) got[f![11]! - 1]! += 1;
      }
      assert.deepEqual(got[0]! + got[1]!, 140);
      assert.ok(Math.abs(got[0]! - got[1]!) <= 70, `${got}`);
      assert.ok(Math.min(...got) > 0);
    });

    it('R11: arm sets kern_need_kick on tx rings only; a ring that moves is disarmed, the others stay armed', () => {
      const need = (ring: RigRing) => nm_csb_ktoa.get.kern_need_kick(rig.m, ring.ktoa);
      const [a, b] = rig.ports;
      const all = [a!.tx[0]!, b!.tx[0]!, a!.rx[0]!, b!.rx[0]!];
      assert.deepEqual(all.map(need), [0, 0, 0, 0], 'after some traffic');
      rig.dp.arm(rig.domain);
      assert.deepEqual(all.map(need), [1, 1, 0, 0]);
      send();
      assert.equal(rig.dp.look(rig.domain), 1);
      rig.serve();
      assert.deepEqual(all.map(need), [0, 1, 0, 0]);
      assert.equal(rig.dp.look(rig.domain), 0);
    });

    it('R11: the kern_need_kick of CREATE is taken from an rx ring, traffic or not', () => {
      const { rx: idle } = rig.addPort();
      assert.equal(nm_csb_ktoa.get.kern_need_kick(rig.m, idle[0]!.ktoa), 1);
      rig.dp.arm(rig.domain);
      assert.equal(nm_csb_ktoa.get.kern_need_kick(rig.m, idle[0]!.ktoa), 0);
    });

    it('R12: a head that becomes visible only after the first look is seen by a later one', () => {
      rig.dp.arm(rig.domain);
      tx.put(toB);
      assert.equal(rig.dp.look(rig.domain), 0);
      tx.publish();
      assert.equal(rig.dp.look(rig.domain), 1);
      assert.equal(rig.serve(), 1);
    });

    it('R13: rings whose hwtail moved are signalled if the application wants it, once until drained', () => {
      rx.needKick(true);
      tx.needKick(true);
      send();
      rig.serve();
      send();
      rig.serve();
      assert.deepEqual(rig.signals().sort(), [rx.kr, tx.kr].sort());
      assert.deepEqual(rig.signals(), []);
      rx.needKick(false);
      tx.needKick(false);
      send();
      rig.serve();
      assert.deepEqual(rig.signals(), []);
      rx.needKick(true);
      rig.serve();
      assert.deepEqual(rig.signals(), [], 'nothing moved');
      assert.equal(rx.count('signals'), 1 + 1, 'and one at the start');
    });

    it('R13: a receiver that drops everything is not signalled', () => {
      send(31);
      rig.serve();
      rig.signals();
      rx.needKick(true);
      tx.needKick(false);
      send(5);
      rig.serve();
      assert.deepEqual(rig.signals(), []);
    });

    it('R16: sync_flags and kicks without need change nothing; any appl_need_kick other than 0 is a wish', () => {
      nm_csb_atok.set.sync_flags(rig.m, tx.atok, 0xffff_fffc);
      nm_csb_atok.set.appl_need_kick(rig.m, rx.atok, 0x8000_0000);
      assert.equal(rig.serve(), 0);
      send();
      rig.serve();
      assert.ok(rig.signals().includes(rx.kr));
    });

    it('hwcur of an rx ring is published when it receives, and by arm', () => {
      send(3);
      rig.serve();
      rx.receive();
      assert.notEqual(rx.hwcur, rx.head);
      rig.dp.arm(rig.domain);
      assert.equal(rx.hwcur, rx.head);
      assert.equal(rx.hwtail, rx.head);
    });

    it('CREATE: krCheck wants kern_need_kick == 1; krStart fills both halves of the CSB', () => {
      const p = rig.addPort({ stopped: true });
      const [t, r] = [p.tx[0]!, p.rx[0]!];
      assert.equal(rig.dp.krCheck(t.kr), 0);
      for (const value of [0, 2, 0xffff_ffff]) {
        nm_csb_ktoa.set.kern_need_kick(rig.m, t.ktoa, value);
        assert.equal(rig.dp.krCheck(t.kr), -22);
      }
      assert.equal(rig.dp.krStart(t.kr), -22, 'not attached');
      assert.equal(rig.dp.valeAttach(rig.domain, p.port), 2);
      for (const [ring, hwtail] of [
        [t, 31],
        [r, 0],
      ] as const) {
        rig.m.u8.fill(0xee, ring.atok, ring.atok + 64);
        rig.m.u8.fill(0xee, ring.ktoa, ring.ktoa + 64);
        assert.equal(rig.dp.krStart(ring.kr), 0);
        const words = (at: number, n: number) => Array.from(rig.m.u32.subarray(at >>> 2, (at >>> 2) + n));
        assert.deepEqual(words(ring.atok, 5), [0, 0, 1, 1, 0xeeee_eeee]);
        assert.deepEqual(words(ring.ktoa, 4), [0, hwtail, 1, 0xeeee_eeee]);
        assert.equal(ring.count('state'), KRING_RUNNING);
      }
    });

    it('CREATE while running changes nothing (R18)', () => {
      send(2);
      assert.equal(rig.dp.krStart(tx.kr), 0);
      assert.equal(nm_csb_atok.get.head(rig.m, tx.atok), tx.head);
      assert.equal(rig.serve(), 2);
      assert.equal(rig.dp.krReset(tx.kr), -16, 'EBUSY');
    });

    it('DELETE does one last sync, then the CSB is left alone; positions persist to the next CREATE (R18)', () => {
      send(5);
      rig.dp.krStop(tx.kr);
      assert.equal(tx.hwcur, tx.head);
      assert.equal(rx.receive().length, 5);
      rig.dp.krStop(rx.kr);
      assert.equal(rx.hwcur, rx.head, 'released slots were taken back');
      assert.deepEqual([tx.count('state'), rx.count('state')], [KRING_STOPPED, KRING_STOPPED]);
      rig.dp.krStop(tx.kr);
      send(3);
      assert.equal(rig.serve(), 0);
      assert.equal(rig.dp.look(rig.domain), 0);
      rig.dp.arm(rig.domain);
      const at = { tx: tx.count('hwcur'), rx: rx.count('hwcur') };
      for (const ring of [tx, rx]) {
        rig.m.u8.fill(0, ring.atok, ring.atok + 64);
        rig.m.u8.fill(0, ring.ktoa, ring.ktoa + 64);
        rig.dp.krStart(ring.kr);
      }
      assert.deepEqual([nm_csb_atok.get.head(rig.m, tx.atok), tx.hwcur], [at.tx, at.tx]);
      assert.deepEqual([nm_csb_atok.get.head(rig.m, rx.atok), rx.hwtail], [at.rx, at.rx]);
      tx.head = at.tx;
      send(2);
      rig.serve();
      assert.equal(rx.receive().length, 2);
    });

    it('a ring that is stopped and reset starts like a new one, faults forgotten', () => {
      send(5);
      rig.serve();
      tx.publish(1000);
      rig.serve();
      rig.dp.krStop(tx.kr);
      rig.dp.krStop(rx.kr);
      assert.equal(rig.dp.krReset(tx.kr), 0);
      assert.equal(rig.dp.krReset(rx.kr), 0);
      assert.equal(tx.count('faulty'), 0);
      rig.dp.krStart(tx.kr);
      rig.dp.krStart(rx.kr);
      assert.deepEqual([tx.hwcur, tx.hwtail, rx.hwcur, rx.hwtail], [0, 31, 0, 0]);
      tx.head = 0;
      rx.head = 0;
      send();
      rig.serve();
      assert.equal(rx.receive().length, 1);
    });

    it('a stopped ring is taken off the list of signals', () => {
      rx.needKick(true);
      send();
      rig.serve();
      rig.dp.krStop(rx.kr);
      assert.ok(!rig.signals().includes(rx.kr));
    });

    it('stopping one of many rings leaves the others served', () => {
      rig.close();
      rig = learnedRig(start, [{ txRings: 4 }, {}]);
      const [a, b] = rig.ports;
      rig.dp.krStop(a!.tx[1]!.kr);
      rig.dp.krStop(a!.tx[3]!.kr);
      for (const ring of a!.tx) {
        ring.put(frame(BROADCAST, mac(1)));
        ring.publish();
      }
      assert.equal(rig.serve(), 2);
      assert.equal(b!.rx[0]!.receive().length, 2);
      rig.dp.krStart(a!.tx[3]!.kr);
      a!.tx[3]!.publish();
      assert.equal(rig.serve(), 1);
    });

    it('R2: an unmapped page is a trap, not the end of the process', () => {
      const { layout } = rig.ports[0]!.region;
      rig.arena.unmap(rig.ports[0]!.regionOfs + layout.bufPool.ofs, 2048 * layout.bufPool.objnum);
      netmap_slot.set.len(rig.m, tx.slot(tx.head), 60);
      tx.publish(tx.next(tx.head));
      assert.throws(() => rig.serve(), WebAssembly.RuntimeError);
    });

    for (const len of [60, 200, 511, 512, 1500, 2048]) {
      it(`R2: so where ${len} bytes are to be copied to`, () => {
        tx.put(frame(mac(2), mac(1), len));
        const { region, regionOfs } = rig.ports[1]!;
        rig.arena.unmap(regionOfs + region.layout.bufPool.ofs, 2048 * region.layout.bufPool.objnum);
        tx.publish();
        assert.throws(() => rig.serve(), WebAssembly.RuntimeError);
      });

      it(`R2: so where ${len} bytes are to be copied from`, () => {
        // Of a packet of two slots the second one's buffer begins the first page that is gone.
        while (tx.buf(tx.next(tx.head)) % 4096 !== 0) send();
        rig.serve();
        const gone = tx.buf(tx.next(tx.head));
        tx.putPacket([frame(mac(2), mac(1)), new Uint8Array(len)]);
        const { region, regionOfs } = rig.ports[0]!;
        const end = regionOfs + region.layout.bufPool.ofs + 2048 * region.layout.bufPool.objnum;
        rig.arena.unmap(gone, Math.ceil(end / 4096) * 4096 - gone);
        tx.publish();
        assert.throws(() => rig.serve(), WebAssembly.RuntimeError);
      });
    }
  });
}
