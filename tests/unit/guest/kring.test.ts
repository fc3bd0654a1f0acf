/** The guest's sync against a naive model: any head and cur of the application, any progress of the host. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NR_DIR_RX, NR_DIR_TX, netmap_ring, nm_csb_atok, nm_csb_ktoa, views } from '../../../src/abi/index.ts';
import { GuestKring } from '../../../src/guest/kring.ts';

const RING = 256;
const ATOK = 64;
const KTOA = 128;

test('R6: sync takes exactly the heads and curs that are in order, publishes those, and follows the host', () => {
  const index = fc.oneof(fc.nat(20), fc.constantFrom(0xffff_ffff, 0x8000_0000, 4096));
  const step = fc.record({ head: index, cur: index, consume: fc.nat(20), produce: fc.nat(20) });
  fc.assert(
    fc.property(fc.integer({ min: 2, max: 16 }), fc.boolean(), fc.array(step, { maxLength: 40 }), (n, tx, steps) => {
      const m = views(new SharedArrayBuffer(1024));
      const dir = tx ? NR_DIR_TX : NR_DIR_RX;
      const kring = new GuestKring({ m, ring: RING, atok: ATOK, ktoa: KTOA, numSlots: n, dir, ringId: 0 });
      // The model: slots from head on that the application owns, in order.
      const host = { hwcur: 0, hwtail: tx ? n - 1 : 0 };
      nm_csb_ktoa.set.hwtail(m, KTOA, host.hwtail);
      kring.syncFromCsb();
      let head = 0;
      let tail = host.hwtail;
      const between = (from: number, to: number): number[] =>
        Array.from({ length: (to - from + n) % n }, (_, i) => (from + i) % n);
      for (const wish of steps) {
        const owned = [...between(head, tail), tail];
        const legal = owned.includes(wish.head) && owned.slice(owned.indexOf(wish.head)).includes(wish.cur);
        netmap_ring.set.head(m, RING, wish.head);
        netmap_ring.set.cur(m, RING, wish.cur);
        const { rhead, rcur } = kring;
        if (legal) kring.sync();
        else assert.throws(() => kring.sync(), { code: 'EINVAL' });
        const [h, c] = legal ? [wish.head, wish.cur] : [rhead, rcur];
        assert.deepEqual([netmap_ring.get.head(m, RING), netmap_ring.get.cur(m, RING)], [h, c]);
        assert.deepEqual([nm_csb_atok.get.head(m, ATOK), nm_csb_atok.get.cur(m, ATOK)], [h, c]);
        head = h;
        // The host takes some slots, gives some, always keeping one.
        const given = between(host.hwcur, head);
        host.hwcur = (host.hwcur + Math.min(wish.consume, given.length)) % n;
        const room = (host.hwcur - 1 - host.hwtail + 2 * n) % n;
        host.hwtail = (host.hwtail + Math.min(wish.produce, room)) % n;
        nm_csb_ktoa.set.hwcur(m, KTOA, host.hwcur);
        nm_csb_ktoa.set.hwtail(m, KTOA, host.hwtail);
        kring.sync();
        tail = host.hwtail;
        assert.deepEqual([kring.rtail, netmap_ring.get.tail(m, RING), kring.hwcur], [tail, tail, host.hwcur]);
      }
    }),
    { numRuns: 500 },
  );
});

test('nonsense in ktoa is an error at any sync, and changes nothing', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0xffff_ffff }), fc.boolean(), (value, cur) => {
      const m = views(new SharedArrayBuffer(1024));
      const place = { m, ring: RING, atok: ATOK, ktoa: KTOA, numSlots: 8, dir: NR_DIR_RX, ringId: 3 };
      const kring = new GuestKring(place);
      kring.syncFromCsb();
      (cur ? nm_csb_ktoa.set.hwcur : nm_csb_ktoa.set.hwtail)(m, KTOA, value);
      if (value < 8) return void kring.sync();
      assert.throws(() => kring.sync(), { code: 'EPROTO', message: /the host put rx ring 3 at/ });
      assert.deepEqual([kring.hwcur, kring.rtail, netmap_ring.get.tail(m, RING)], [0, 0, 0]);
    }),
  );
});
