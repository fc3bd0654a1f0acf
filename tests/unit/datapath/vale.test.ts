/** VALE between mock guests: which frame goes where, and how slots look when they arrive. */
import assert from 'node:assert/strict';
import { afterEach, describe, it } from 'node:test';
import {
  NM_BDG_HASH,
  NM_BDG_MAXPORTS,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_NO_LEARN,
  NS_REPORT,
  netmap_slot,
} from '../../../src/abi/index.ts';
import type { RigPortOptions } from './rig.ts';
import { BROADCAST, drops, frame, learnedRig, mac, Rig, STARTS } from './rig.ts';

const chain = (n: number) => Array.from({ length: n }, (_, i) => (i === 0 ? frame(mac(2), mac(1)) : Uint8Array.of(i)));

for (const [where, start] of STARTS) {
  describe(`VALE, ${where}`, () => {
    let rig: Rig;
    afterEach(() => rig.close());

    /** n ports, learned; first rings of each. */
    const make = (n: number, options: RigPortOptions = {}) => {
      rig = learnedRig(
        start,
        Array.from({ length: n }, () => options),
      );
      return { tx: rig.ports.map((p) => p.tx[0]!), rx: rig.ports.map((p) => p.rx[0]!) };
    };

    it('delivers a unicast frame to the port that has the address, and to no other', () => {
      const { tx, rx } = make(3);
      const f = frame(mac(2), mac(1), 77, 5);
      tx[0]!.put(f);
      tx[0]!.publish();
      assert.equal(rig.serve(), 1);
      assert.deepEqual(rx[1]!.receive(), [[f]]);
      assert.deepEqual(rx[2]!.receive(), []);
      assert.deepEqual(rx[0]!.receive(), []);
      assert.equal(rig.serve(), 0);
    });

    for (const [what, dst] of [
      ['broadcast', BROADCAST],
      ['multicast', Uint8Array.of(0x33, 0x33, 0, 0, 0, 1)],
      ['unknown unicast', mac(99)],
    ] as const) {
      it(`floods ${what} to every port but the sender's`, () => {
        const { tx, rx } = make(4);
        const f = frame(dst, mac(1));
        tx[0]!.put(f);
        tx[0]!.publish();
        rig.serve();
        for (const i of [1, 2, 3]) assert.deepEqual(rx[i]!.receive(), [[f]]);
        assert.deepEqual(rx[0]!.receive(), []);
        assert.equal(tx[0]!.count('copies'), 3 + 3, 'and 3 when it was learned');
      });
    }

    it('drops a frame for the port it came from, counted as drop_nodst', () => {
      const { tx, rx } = make(2);
      tx[0]!.put(frame(mac(1), mac(1)));
      tx[0]!.publish();
      rig.serve();
      for (const r of rx) assert.deepEqual(r.receive(), []);
      assert.equal(tx[0]!.count('drop_nodst'), 1);
      assert.equal(tx[0]!.count('copies'), 1, 'the broadcast it was learned by');
    });

    it('follows an address that moves to another port', () => {
      const { tx, rx } = make(3);
      tx[2]!.put(frame(mac(1), mac(2)));
      tx[2]!.publish();
      rig.serve();
      rx[0]!.receive();
      tx[0]!.put(frame(mac(2), mac(1)));
      tx[0]!.publish();
      rig.serve();
      assert.equal(rx[1]!.receive().length, 0);
      assert.equal(rx[2]!.receive().length, 1);
    });

    it('does not learn from a multicast source, nor with NS_NO_LEARN', () => {
      const { tx, rx } = make(3);
      const group = Uint8Array.of(3, 0, 0, 0, 0, 1);
      tx[1]!.put(frame(mac(1), group));
      tx[1]!.put(frame(mac(1), mac(77)), NS_NO_LEARN);
      tx[1]!.publish();
      rig.serve();
      assert.equal(rx[0]!.receive().length, 2);
      tx[0]!.put(frame(mac(77), mac(1)));
      tx[0]!.publish();
      rig.serve();
      assert.deepEqual([rx[1]!.receive().length, rx[2]!.receive().length], [1, 1], 'mac(77) is unknown');
    });

    it('table: a new address takes the place of one with the same hash, which is flooded from then on', () => {
      const { tx, rx } = make(3, { txSlots: 4096, rxSlots: 4096 });
      // More addresses than the table holds: some of them collide.
      const n = 2 * NM_BDG_HASH;
      for (let i = 0; i < n; i++) tx[1]!.put(frame(mac(1), mac(1000 + i)));
      tx[1]!.publish();
      while (rig.serve() > 0);
      rx[0]!.receive();
      rx[2]!.receive();
      for (let i = 0; i < n; i++) tx[0]!.put(frame(mac(1000 + i), mac(1)));
      tx[0]!.publish();
      while (rig.serve() > 0);
      const flooded = rx[2]!.receive().length;
      assert.equal(rx[1]!.receive().length, n, 'every frame reaches the port that has the address');
      assert.ok(flooded >= n - NM_BDG_HASH, `${flooded} of ${n} were flooded`);
      assert.ok(flooded < (n * 3) / 4, `${flooded} of ${n} flooded: the hash spreads badly`);
    });

    it('slots: len, and fragments << 8 with NS_MOREFRAG on all but the last; other flags of the sender stay behind', () => {
      const { tx, rx } = make(2);
      const frags = [frame(mac(2), mac(1), 2048), new Uint8Array(100).fill(3), new Uint8Array(1).fill(4)];
      tx[0]!.put(frame(mac(2), mac(1)), NS_REPORT);
      tx[0]!.putPacket(frags, NS_REPORT);
      tx[0]!.publish();
      assert.equal(rig.serve(), 4);
      const got = rx[1]!.take();
      assert.deepEqual(
        got.map((f) => [f.len, f.flags]),
        [
          [60, 0x0100],
          [2048, 0x0300 | NS_MOREFRAG],
          [100, 0x0300 | NS_MOREFRAG],
          [1, 0x0300],
        ],
      );
      assert.deepEqual(
        got.slice(1).map((f) => f.bytes),
        frags,
      );
      assert.equal(rx[1]!.count('packets'), 2 + 1, 'the broadcast, a frame, a chain');
    });

    it('clears NS_BUF_CHANGED in the slots of the sender, and nothing else in them', () => {
      const { tx } = make(2);
      const { m } = rig;
      const at = tx[0]!.head;
      tx[0]!.put(frame(mac(2), mac(1)), NS_BUF_CHANGED | NS_REPORT);
      const idx = tx[0]!.bufIdx(at);
      tx[0]!.publish();
      rig.serve();
      assert.equal(netmap_slot.get.flags(m, tx[0]!.slot(at)), NS_REPORT);
      assert.equal(netmap_slot.get.len(m, tx[0]!.slot(at)), 60);
      assert.equal(tx[0]!.bufIdx(at), idx);
    });

    it('keeps chains of 64 slots whole; longer ones are dropped and counted, the ring goes on', () => {
      const { tx, rx } = make(2, { txSlots: 256, rxSlots: 256 });
      tx[0]!.putPacket(chain(64));
      tx[0]!.putPacket(chain(65));
      tx[0]!.putPacket(chain(2));
      tx[0]!.publish();
      assert.equal(rig.serve(), 64 + 65 + 2);
      assert.deepEqual(rx[1]!.receive(), [chain(64), chain(2)]);
      assert.equal(tx[0]!.count('drop_bad'), 1);
    });

    it('cuts an incomplete chain at head and sends it, as netmap does', () => {
      const { tx, rx } = make(2);
      const f = frame(mac(2), mac(1));
      tx[0]!.put(f, NS_MOREFRAG);
      tx[0]!.put(Uint8Array.of(1), NS_MOREFRAG);
      tx[0]!.publish();
      rig.serve();
      assert.deepEqual(
        rx[1]!.take().map((s) => s.flags),
        [0x0200 | NS_MOREFRAG, 0x0200],
      );
      assert.equal(tx[0]!.hwcur, tx[0]!.head);
    });

    it('R10: a receiver without room drops, counted there; the sender is not held up', () => {
      const { tx, rx } = make(3, { txSlots: 64, rxSlots: 32 });
      const frames = Array.from({ length: 60 }, (_, i) => frame(mac(2), mac(1), 60, i));
      for (const f of frames) tx[0]!.put(f);
      tx[0]!.publish();
      assert.equal(rig.serve(), 60);
      assert.equal(tx[0]!.hwcur, tx[0]!.head);
      assert.deepEqual(
        rx[1]!.receive(),
        frames.slice(0, 31).map((f) => [f]),
      );
      assert.equal(rx[1]!.count('drop_full'), 29);
      assert.equal(drops(rig.ports[2]!), 0);
    });

    it('R10: a chain that does not fit is dropped whole, a shorter packet behind it still gets the room', () => {
      const { tx, rx } = make(2, { txSlots: 64, rxSlots: 8 });
      const f = frame(mac(2), mac(1));
      for (let i = 0; i < 5; i++) tx[0]!.put(f);
      tx[0]!.putPacket([f, f, f]);
      tx[0]!.put(f);
      tx[0]!.publish();
      rig.serve();
      assert.deepEqual(rx[1]!.receive(), [[f], [f], [f], [f], [f], [f]]);
      assert.equal(rx[1]!.count('drop_full'), 1);
    });

    it('R7: a bad slot of the sender costs that packet, is counted, and the ring goes on', () => {
      const { tx, rx } = make(2, { txSlots: 64 });
      const { m } = rig;
      const good = frame(mac(2), mac(1), 60, 1);
      const numBufs = rig.ports[0]!.region.layout.bufPool.objnum;
      const bad = (change: (slot: number) => void, flags = 0) => {
        const at = tx[0]!.head;
        tx[0]!.put(good, flags);
        const idx = tx[0]!.bufIdx(at);
        change(tx[0]!.slot(at));
        return () => netmap_slot.set.buf_idx(m, tx[0]!.slot(at), idx);
      };
      const undo = [
        bad((s) => netmap_slot.set.buf_idx(m, s, 0)),
        bad((s) => netmap_slot.set.buf_idx(m, s, 1)),
        bad((s) => netmap_slot.set.buf_idx(m, s, numBufs)),
        bad((s) => netmap_slot.set.buf_idx(m, s, 0xffff_ffff)),
        bad((s) => netmap_slot.set.len(m, s, 2049)),
        bad((s) => netmap_slot.set.len(m, s, 65535)),
        bad((s) => netmap_slot.set.len(m, s, 13)),
        bad((s) => netmap_slot.set.len(m, s, 0)),
        bad(() => {}, NS_INDIRECT),
      ];
      tx[0]!.put(good);
      // In a chain a bad slot costs all of it.
      tx[0]!.putPacket([good, good, good]);
      netmap_slot.set.buf_idx(m, tx[0]!.slot(tx[0]!.head - 1), 0);
      tx[0]!.put(good);
      tx[0]!.publish();
      assert.equal(rig.serve(), undo.length + 1 + 3 + 1);
      assert.deepEqual(rx[1]!.receive(), [[good], [good]]);
      assert.equal(tx[0]!.count('drop_bad'), undo.length + 1);
      assert.equal(tx[0]!.count('repairs'), 0);
    });

    it('R7: a bad slot of the receiver costs that packet; it goes back empty and the ring goes on', () => {
      const { tx, rx } = make(2);
      const { m } = rig;
      const first = rx[1]!.head;
      const spoilt = rx[1]!.next(first);
      netmap_slot.set.buf_idx(m, rx[1]!.slot(spoilt), 0);
      const frames = [1, 2, 3].map((i) => frame(mac(2), mac(1), 60, i));
      for (const f of frames) tx[0]!.put(f);
      tx[0]!.publish();
      rig.serve();
      const got = rx[1]!.take();
      assert.deepEqual(
        got.map((s) => [s.len, s.flags]),
        [
          [60, 0x100],
          [0, 0],
          [60, 0x100],
        ],
      );
      assert.deepEqual([got[0]!.bytes, got[2]!.bytes], [frames[0], frames[2]]);
      assert.equal(rx[1]!.count('drop_dst'), 1);
      assert.equal(rx[1]!.count('packets'), 1 + 2);
      assert.equal(netmap_slot.get.buf_idx(m, rx[1]!.slot(spoilt)), 0, 'the host never writes buf_idx');
    });

    it('R7: a bad slot of the receiver within a chain: the chain is dropped, the slots used for it go back empty', () => {
      const { tx, rx } = make(2);
      const { m } = rig;
      netmap_slot.set.buf_idx(m, rx[1]!.slot(rx[1]!.head + 1), 0xffff_ffff);
      const f = frame(mac(2), mac(1));
      tx[0]!.putPacket([f, f, f]);
      tx[0]!.put(f);
      tx[0]!.publish();
      rig.serve();
      assert.deepEqual(
        rx[1]!.take().map((s) => [s.len, s.flags]),
        [
          [0, 0],
          [0, 0],
          [60, 0x100],
        ],
      );
      assert.equal(rx[1]!.count('drop_dst'), 1);
    });

    it('drops what is longer than the buffers of the receiver, counted there', () => {
      rig = learnedRig(start, [{}, { bufSize: 256 }]);
      const [a, b] = rig.ports;
      const ok = frame(mac(2), mac(1), 256);
      a!.tx[0]!.put(frame(mac(2), mac(1), 257));
      a!.tx[0]!.putPacket([ok, new Uint8Array(257)]);
      a!.tx[0]!.put(ok);
      a!.tx[0]!.publish();
      rig.serve();
      assert.deepEqual(b!.rx[0]!.receive(), [[ok]]);
      assert.equal(b!.rx[0]!.count('drop_dst'), 2);
    });

    it('R9: what lies behind a frame in the sender’s buffer never reaches the receiver', () => {
      const { tx, rx } = make(2);
      const { m } = rig;
      const around = [16, 32, 48, 64, 128, 192, 512, 1514].flatMap((n) => [n - 1, n, n + 1]);
      for (const len of [14, 60, ...around, 2047, 2048]) {
        m.u8.fill(0x55, tx[0]!.buf(tx[0]!.head), tx[0]!.buf(tx[0]!.head) + 2048);
        const at = rx[1]!.buf(rx[1]!.head);
        m.u8.fill(0xaa, at - 64, at + 2048 + 64);
        const f = frame(mac(2), mac(1), len, len);
        tx[0]!.put(f);
        tx[0]!.publish();
        rig.serve();
        assert.deepEqual(rx[1]!.receive(), [[f]]);
        for (let i = len; i < 2048; i++) assert.equal(m.u8[at + i], 0xaa, `length ${len}, byte ${i}`);
        for (let i = 1; i <= 64; i++) {
          assert.equal(m.u8[at - i], 0xaa, 'before the buffer');
          assert.equal(m.u8[at + 2047 + i], 0xaa, 'behind the buffer');
        }
      }
    });

    for (const vnetHdrLen of [0, 10, 12]) {
      it(`R9: long and short frames in one run, header of ${vnetHdrLen}: each arrives whole, nothing else is written`, () => {
        const { tx, rx } = make(2, { vnetHdrLen });
        const { m } = rig;
        for (const lengths of [
          [1500, 60, 512, 511, 2048, 64, 65, 1514],
          [60, 1500, 1500, 200, 513],
          [600, 600, 600],
        ]) {
          const at = lengths.map((_, i) => rx[1]!.buf((rx[1]!.head + i) % 32));
          for (const buf of at) m.u8.fill(0xaa, buf, buf + 2048);
          const frames = lengths.map((len, i) => frame(mac(2), mac(1), len - vnetHdrLen, i, vnetHdrLen));
          for (const f of frames) tx[0]!.put(f);
          tx[0]!.publish();
          assert.equal(rig.serve(), frames.length);
          assert.deepEqual(
            rx[1]!.receive(),
            frames.map((f) => [f]),
          );
          for (const [i, buf] of at.entries()) {
            for (let k = lengths[i]!; k < 2048; k++) assert.equal(m.u8[buf + k], 0xaa, `frame ${i}, byte ${k}`);
          }
        }
      });
    }

    it('uses the ring with the sender’s number, modulo the receiver’s rings; floods go to ring 0', () => {
      rig = learnedRig(start, [{ txRings: 5, rxRings: 2 }, { rxRings: 3 }]);
      const [a, b] = rig.ports;
      for (const [i, ring] of a!.tx.entries()) {
        ring.put(frame(mac(2), mac(1), 60, i));
        ring.put(frame(BROADCAST, mac(1), 61, i));
        ring.publish();
      }
      rig.serve();
      const at = b!.rx.map((ring) => ring.receive().map(([f]) => [f!.length, f![14]! - 14 * 7 + 14 * 7]));
      const tags = (ring: number, len: number) => at[ring]!.filter(([l]) => l === len).length;
      assert.deepEqual(
        [0, 1, 2].map((ring) => tags(ring, 60)),
        [2, 2, 1],
      );
      assert.deepEqual(
        [0, 1, 2].map((ring) => tags(ring, 61)),
        [5, 0, 0],
      );
    });

    it('keeps the order of a sender’s packets at each receiver, unicast and floods mixed', () => {
      const { tx, rx } = make(3, { txSlots: 128, rxSlots: 128 });
      const dst = [mac(2), BROADCAST, mac(3), mac(200)];
      const sent = Array.from({ length: 100 }, (_, i) => frame(dst[(i * 7) % 4]!, mac(1), 60, i));
      for (const f of sent) tx[0]!.put(f);
      tx[0]!.publish();
      rig.serve();
      assert.deepEqual(
        rx[1]!.receive().flat(),
        sent.filter((f) => f[0] === 255 || f[5] !== 3),
      );
      assert.deepEqual(
        rx[2]!.receive().flat(),
        sent.filter((f) => f[0] === 255 || f[5] !== 2),
      );
    });

    it('ports: lowest free port_id; a detached port is forgotten, its frames are flooded, its rings stop', () => {
      const { tx, rx } = make(3);
      assert.deepEqual(
        rig.ports.map((p) => p.id),
        [0, 1, 2],
      );
      assert.equal(rig.dp.valeAttach(rig.domain, rig.ports[1]!.port), -16, 'EBUSY');
      assert.equal(rig.dp.valeDetach(rig.domain, rig.ports[1]!.port), 0);
      assert.equal(rig.dp.valeDetach(rig.domain, rig.ports[1]!.port), -22, 'EINVAL');
      tx[0]!.put(frame(mac(2), mac(1)));
      tx[0]!.publish();
      rig.serve();
      assert.equal(rx[2]!.receive().length, 1);
      assert.equal(rx[1]!.receive().length, 0);
      assert.equal(drops(rig.ports[1]!), 0);
      const { id } = rig.addPort();
      assert.equal(id, 1);
    });

    it('frames for a stopped ring are dropped and counted (R19)', () => {
      const { tx, rx } = make(2);
      rig.dp.krStop(rx[1]!.kr);
      tx[0]!.put(frame(mac(2), mac(1)));
      tx[0]!.put(frame(BROADCAST, mac(1)));
      tx[0]!.publish();
      rig.serve();
      assert.equal(rx[1]!.count('drop_stopped'), 2);
      assert.equal(rx[1]!.avail, 0);
    });

    it('conservation: every copy is delivered or counted as dropped by its receiver', () => {
      rig = learnedRig(start, [{ txSlots: 64 }, { rxSlots: 8, bufSize: 128 }, { rxSlots: 16 }, {}]);
      const [a] = rig.ports;
      rig.dp.krStop(rig.ports[3]!.rx[0]!.kr);
      for (let i = 0; i < 40; i++) a!.tx[0]!.put(frame([mac(2), mac(3), mac(4), BROADCAST][i % 4]!, mac(1), 100 + i));
      a!.tx[0]!.publish();
      rig.serve();
      const copies = rig.ports.reduce((n, p) => n + p.tx[0]!.count('copies'), 0);
      const arrived = rig.ports.reduce((n, p) => n + p.rx[0]!.count('packets') + drops(p), 0);
      assert.equal(arrived, copies);
      assert.equal(a!.tx[0]!.count('packets'), 41);
    });
  });
}

describe('VALE, limits', () => {
  it('takes 254 ports and floods to all of them', () => {
    const rig = new Rig();
    const options = { txSlots: 2, rxSlots: 2, bufSize: 64 };
    for (let i = 0; i < NM_BDG_MAXPORTS; i++) assert.equal(rig.addPort(options).id, i);
    const one = rig.addPort({ ...options, stopped: true });
    assert.equal(rig.dp.valeAttach(rig.domain, one.port), -28, 'ENOSPC');
    rig.ports[7]!.tx[0]!.put(frame(BROADCAST, mac(1)));
    rig.ports[7]!.tx[0]!.publish();
    assert.equal(rig.serve(), 1);
    for (const [i, p] of rig.ports.entries()) {
      assert.equal(p.rx[0]!.avail, i === 7 || i === NM_BDG_MAXPORTS ? 0 : 1, `port ${i}`);
    }
    assert.equal(rig.signals().length, NM_BDG_MAXPORTS, 'the receivers, and the sender, whose hwtail moved too');
    rig.close();
  });
});
