/** Ports with VirtIO network headers of 0, 10 or 12 bytes on one switch. The offloads themselves: tests/unit/offload. */
import assert from 'node:assert/strict';
import { afterEach, describe, it } from 'node:test';
import type { RigRing } from './rig.ts';
import { BROADCAST, frame, learnedRig, mac, Rig, STARTS } from './rig.ts';

/** A frame behind a header that starts with the given bytes. */
const framed = (hdr: number, header: readonly number[], len = 60): Uint8Array => {
  const f = frame(mac(2), mac(1), len, 9, hdr);
  f.set(header);
  return f;
};

for (const [where, start] of STARTS) {
  describe(`VirtIO headers, ${where}`, () => {
    let rig: Rig;
    afterEach(() => rig.close());

    const make = (...lengths: number[]): { tx: RigRing[]; rx: RigRing[] } => {
      rig = learnedRig(
        start,
        lengths.map((vnetHdrLen) => ({ vnetHdrLen })),
      );
      return { tx: rig.ports.map((p) => p.tx[0]!), rx: rig.ports.map((p) => p.rx[0]!) };
    };
    const sendOne = (ring: RigRing, ...frags: Uint8Array[]): void => {
      ring.putPacket(frags);
      ring.publish();
      rig.serve();
    };
    const NEEDS_CSUM = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
    const TCPV4 = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];

    for (const hdr of [10, 12]) {
      it(`${hdr} bytes on both sides: the header goes with the frame as it is, offloads too`, () => {
        const { tx, rx } = make(hdr, hdr, hdr);
        for (const header of [[], NEEDS_CSUM, TCPV4]) {
          const f = framed(hdr, header, 200);
          sendOne(tx[0]!, f);
          assert.deepEqual(rx[1]!.receive(), [[f]]);
        }
        assert.equal(rx[2]!.receive().length, 0, 'the address was found behind the header');
      });

      it(`${hdr} bytes alone in the first slot: the frame is found in the second`, () => {
        const { tx, rx } = make(hdr, hdr, 0);
        const f = frame(mac(2), mac(1));
        sendOne(tx[0]!, new Uint8Array(hdr), f);
        assert.deepEqual(rx[1]!.receive(), [[new Uint8Array(hdr), f]]);
        assert.equal(rx[2]!.receive().length, 0);
        sendOne(tx[0]!, new Uint8Array(hdr), frame(mac(3), mac(1), 80));
        assert.deepEqual(rx[2]!.receive(), [[frame(mac(3), mac(1), 80)]], 'without header: one slot less');
      });

      it(`${hdr} bytes: a frame whose Ethernet header is not whole in one slot is dropped and counted`, () => {
        const { tx, rx } = make(hdr, hdr);
        const f = frame(mac(2), mac(1));
        sendOne(tx[0]!, f.slice(0, hdr - 1), f);
        sendOne(tx[0]!, f.slice(0, hdr + 13), f);
        sendOne(tx[0]!, f.slice(0, hdr), f.slice(0, 13));
        sendOne(tx[0]!, f.slice(0, hdr));
        sendOne(tx[0]!, f.slice(0, hdr + 13));
        assert.deepEqual(rx[1]!.receive(), []);
        assert.equal(tx[0]!.count('drop_bad'), 5);
      });

      it(`${hdr} -> 0: a header that asks for nothing is cut off, sizes and neighbours exact (R9)`, () => {
        const { tx, rx } = make(hdr, 0);
        for (const len of [14, 15, 16, 17, 31, 60, 64, 1514, 2048 - hdr]) {
          rig.m.u8.fill(0x55, tx[0]!.buf(tx[0]!.head), tx[0]!.buf(tx[0]!.head) + 2048);
          const at = rx[1]!.buf(rx[1]!.head);
          rig.m.u8.fill(0xaa, at - 64, at + 2048 + 64);
          sendOne(tx[0]!, framed(hdr, [2], len));
          assert.deepEqual(rx[1]!.receive(), [[frame(mac(2), mac(1), len, 9, hdr).slice(hdr)]]);
          for (let i = len; i < 2048 + 64; i++) assert.equal(rig.m.u8[at + i], 0xaa, `length ${len}, byte ${i}`);
        }
      });

      it(`0 -> ${hdr}: a header of zeros is put in front`, () => {
        const { tx, rx } = make(0, hdr);
        const f = frame(mac(2), mac(1), 1514);
        rig.m.u8.fill(0xaa, rx[1]!.buf(rx[1]!.head), rx[1]!.buf(rx[1]!.head) + 2048);
        sendOne(tx[0]!, f);
        assert.deepEqual(rx[1]!.receive(), [[Uint8Array.of(...new Uint8Array(hdr), ...f)]]);
        sendOne(tx[0]!, frame(mac(2), mac(1), 2048));
        const [slots] = rx[1]!.receive();
        assert.deepEqual(
          slots!.map((slot) => slot.length),
          [2048, hdr],
          'what the header displaces goes to the next slot',
        );
      });
    }

    it('10 <-> 12: the first ten bytes are kept, the others are zeros', () => {
      const { tx, rx } = make(10, 12);
      sendOne(tx[0]!, framed(10, TCPV4));
      const [got] = rx[1]!.receive();
      assert.deepEqual(Array.from(got![0]!.slice(0, 12)), [...TCPV4, 0, 0]);
      assert.deepEqual(got![0]!.slice(12), framed(10, []).slice(10));
      tx[1]!.put(Uint8Array.of(...TCPV4, 7, 7, ...frame(mac(1), mac(2), 60, 1)));
      tx[1]!.publish();
      rig.serve();
      const [back] = rx[0]!.receive();
      assert.deepEqual(Array.from(back![0]!.slice(0, 10)), TCPV4);
      assert.deepEqual(back![0]!.slice(10), frame(mac(1), mac(2), 60, 1));
    });

    it('a flood is converted for each receiver', () => {
      const { tx, rx } = make(12, 0, 10, 12);
      const f = frame(BROADCAST, mac(1), 60, 0, 12);
      sendOne(tx[0]!, f);
      assert.deepEqual(
        [1, 2, 3].map((i) => rx[i]!.receive()[0]![0]!.length),
        [60, 70, 72],
      );
    });
  });
}
