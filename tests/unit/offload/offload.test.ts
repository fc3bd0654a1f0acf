/** Headers of different length on one switch: offloads are done for whoever has no header, exactly as the naive code does them. */
import assert from 'node:assert/strict';
import { afterEach, describe, it } from 'node:test';
import * as fc from 'fast-check';
import { netmap_slot } from '../../../src/abi/index.ts';
import type { RigPort, RigRing } from '../datapath/rig.ts';
import { mac, Rig, STARTS } from '../datapath/rig.ts';
import { convert, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, malformed, NEEDS_CSUM, vnet } from './naive.ts';
import type { PacketShape } from './packets.ts';
import { build, shape } from './packets.ts';

const runs = process.env['PTNET_LONG'] === '1' ? 3000 : 200;

/** Cuts a packet into slots' worth of bytes: the first holds the header and `first` bytes more, the others `size`. */
export function slots(packet: Uint8Array, hdr: number, first: number, size: number): Uint8Array[] {
  const out = [packet.subarray(0, hdr + first)];
  for (let at = hdr + first; at < packet.length; at += size) out.push(packet.subarray(at, at + size));
  return out;
}

const flat = (frags: readonly Uint8Array[]): Uint8Array => Uint8Array.from(Buffer.concat(frags));
const plain: PacketShape = {
  ipv6: false,
  udp: false,
  vlans: [],
  ipOptions: 0,
  tcpOptions: 3,
  payload: 5000,
  tcpFlags: 0x19,
  id: 0xffff,
  seq: 0xffff_f000,
  df: true,
  tag: 7,
  gsoSize: 1448,
  ecn: false,
  csum: true,
};

for (const [where, start] of STARTS) {
  describe(`offloads, ${where}`, () => {
    let rig: Rig;
    afterEach(() => rig.close());

    interface Pair {
      a: RigPort;
      b: RigPort;
      tx: RigRing;
      rx: RigRing;
    }
    /** A sender with and a receiver without header, which know each other. */
    const pair = (hdr: number, dstHdr: number, bufSize = 2048, rxSlots = 256): Pair => {
      rig = new Rig(start);
      const a = rig.addPort({ vnetHdrLen: hdr, txSlots: 128 });
      const b = rig.addPort({ vnetHdrLen: dstHdr, bufSize, rxSlots });
      return { a, b, tx: a.tx[0]!, rx: b.rx[0]! };
    };
    const send = ({ tx }: Pair, frags: readonly Uint8Array[]): void => {
      tx.putPacket(frags);
      tx.publish();
      rig.serve();
    };
    const receive = ({ rx }: Pair): Uint8Array[] => rx.receive().map(flat);

    it('R5: random TCP and UDP packets, cut into slots anywhere, arrive as the naive implementation says', () => {
      fc.assert(
        fc.property(
          shape,
          fc.constantFrom([12, 0], [10, 0], [12, 10], [0, 12]),
          fc.integer({ min: 14, max: 2036 }),
          fc.integer({ min: 1000, max: 2048 }),
          fc.constantFrom(2048, 2048, 512, 4096),
          (s, [hdr, dstHdr], first, size, bufSize) => {
            const p = pair(hdr!, dstHdr!, bufSize, 4096);
            try {
              const packet = build(s, mac(2), mac(1), 12);
              const full = Uint8Array.of(...packet.subarray(0, hdr!), ...packet.subarray(12));
              send(p, slots(full, hdr!, first, size));
              const expected = convert(full, hdr!, dstHdr!);
              const got = receive(p);
              const total = full.length - hdr! + dstHdr!;
              if (expected === undefined) {
                assert.deepEqual([got.length, p.rx.count('drop_offload')], [0, 1]);
              } else if (expected.length === 1 && total > 64 * bufSize) {
                assert.deepEqual([got.length, p.rx.count('drop_dst')], [0, 1]);
              } else {
                assert.deepEqual(got, expected);
                assert.equal(p.rx.count('packets') - p.rx.count('segments'), 1);
              }
            } finally {
              rig.close();
            }
          },
        ),
        { numRuns: runs },
      );
      pair(0, 0);
    });

    it('TCP segments: ids and sequence numbers wrap, FIN and PSH end in the last, CWR in the first', () => {
      for (const ipv6 of [false, true]) {
        const p = pair(12, 0);
        const packet = build({ ...plain, ipv6, tcpFlags: 0xd9, ecn: true }, mac(2), mac(1));
        send(p, slots(packet, 12, 1000, 2048));
        const got = receive(p);
        const l4 = ipv6 ? 54 : 34;
        assert.deepEqual(
          got.map((f) => f[l4 + 13]),
          [0xd0, 0x50, 0x50, 0x59],
        );
        assert.deepEqual(
          got.map((f) => new DataView(f.buffer).getUint32(l4 + 4)),
          [0, 1, 2, 3].map((i) => (0xffff_f000 + i * 1448) % 2 ** 32),
        );
        if (!ipv6) {
          assert.deepEqual(
            got.map((f) => (f[18]! << 8) | f[19]!),
            [0xffff, 0, 1, 2],
          );
        }
        assert.equal(
          got.reduce((n, f) => n + f.length - l4 - 32, 0),
          5000,
        );
        if (!ipv6) rig.close();
      }
    });

    it('64 KiB become 46 frames, each in one slot with its own fragment count', () => {
      const p = pair(12, 0);
      send(p, slots(build({ ...plain, payload: 65_483 }, mac(2), mac(1)), 12, 2036, 2048));
      const frames = p.rx.take();
      assert.equal(frames.length, 46);
      assert.ok(frames.every((f) => f.flags === 0x100));
      assert.equal(p.rx.count('segments'), 45);
    });

    it('a packet that finds no room for all of its segments is dropped whole, and the next one arrives', () => {
      const p = pair(12, 0, 2048, 4);
      send(p, slots(build(plain, mac(2), mac(1)), 12, 2036, 2048));
      assert.equal(p.rx.count('drop_full'), 1);
      send(p, slots(build({ ...plain, payload: 3000 }, mac(2), mac(1)), 12, 2036, 2048));
      assert.equal(receive(p).length, 3);
    });

    it('R7: a bad slot of the receiver costs what was behind it, never the ring', () => {
      const p = pair(12, 0, 2048, 32);
      const spoilt = p.rx.slot(2);
      const idx = netmap_slot.get.buf_idx(rig.m, spoilt);
      netmap_slot.set.buf_idx(rig.m, spoilt, 0xffff_ffff);
      send(p, slots(build(plain, mac(2), mac(1)), 12, 2036, 2048));
      netmap_slot.set.buf_idx(rig.m, spoilt, idx);
      assert.deepEqual(
        ['packets', 'drop_dst', 'segments'].map((n) => p.rx.count(n as 'packets')),
        [2, 1, 2],
      );
      assert.equal(receive(p).length, 2);
      send(p, slots(build(plain, mac(2), mac(1)), 12, 2036, 2048));
      assert.equal(receive(p).length, 4);
    });

    it('R5: malformed headers go nowhere, whoever the receiver is, and are counted at the sender', () => {
      const bad = [
        vnet({ flags: 4 }),
        vnet({ gsoType: 2, gsoSize: 1000 }),
        vnet({ gsoType: 5, gsoSize: 1000 }),
        vnet({ gsoType: GSO_ECN, gsoSize: 1000 }),
        vnet({ gsoType: GSO_UDP | GSO_ECN, gsoSize: 1000 }),
        vnet({ gsoType: GSO_TCPV4, gsoSize: 0 }),
        vnet({ flags: NEEDS_CSUM, csumStart: 84, csumOffset: 16 }),
        vnet({ flags: NEEDS_CSUM, csumStart: 65535, csumOffset: 65535 }),
        vnet({ flags: NEEDS_CSUM, csumStart: 14, csumOffset: 85 }),
        new Uint8Array(12).fill(255),
      ];
      for (const dstHdr of [0, 10, 12]) {
        const p = pair(12, dstHdr);
        for (const header of bad) {
          const packet = Uint8Array.of(
            ...header,
            ...build({ ...plain, payload: 34, gsoSize: 0 }, mac(2), mac(1)).slice(12),
          );
          assert.ok(malformed(packet, 12));
          send(p, [packet]);
          send(p, slots(packet, 12, 20, 30));
        }
        assert.equal(p.tx.count('drop_bad'), 2 * bad.length);
        assert.deepEqual(receive(p), []);
        if (dstHdr !== 12) rig.close();
      }
    });

    it('what the header asks for and the frame is not: dropped and counted as drop_offload', () => {
      const p = pair(12, 0);
      const good = build(plain, mac(2), mac(1)).slice(0, 1500);
      const damages: ((f: Uint8Array) => void)[] = [
        (f) => (f[1] = GSO_TCPV6),
        (f) => (f[1] = GSO_UDP),
        (f) => (f[12 + 12] = 0x99), // no IP
        (f) => (f[12 + 14] = 0x55), // version 5
        (f) => (f[12 + 14] = 0x44), // short IP header
        (f) => (f[12 + 14] = 0x4f), // long one: the protocol behind it is not TCP's
        (f) => (f[12 + 20] = 0x20), // a fragment
        (f) => (f[12 + 23] = 17), // not TCP
        (f) => (f[12 + 34 + 12] = 0x40), // short TCP header
      ];
      for (const [i, damage] of damages.entries()) {
        const f = good.slice();
        damage(f);
        send(p, [f]);
        const expected = convert(f, 12, 0);
        if (i !== 5) assert.equal(expected, undefined, `damage ${i}`);
        assert.deepEqual(receive(p), expected ?? [], `damage ${i}`);
      }
      for (const len of [14, 15, 33, 34, 53, 54, 65])
        send(p, [good.slice(0, 12).fill(0, 0, 1).fill(0, 6), good.slice(12, 12 + len)]);
      assert.deepEqual(receive(p), []);
      assert.equal(p.rx.count('drop_offload'), damages.length - 1 + 7);
    });

    it('random headers and bytes: what arrives is what the naive implementation says, nothing faults', () => {
      const header = fc.record({
        flags: fc.constantFrom(0, 1, 2, 3, 4),
        gsoType: fc.constantFrom(0, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_TCPV4 | GSO_ECN, 7),
        gsoSize: fc.constantFrom(0, 1, 7, 8, 100, 1448, 65535),
        csumStart: fc.oneof(fc.nat(300), fc.nat(65535)),
        csumOffset: fc.oneof(fc.nat(60), fc.nat(65535)),
      });
      fc.assert(
        fc.property(
          header,
          shape,
          fc.array(fc.tuple(fc.nat(90), fc.nat(255)), { maxLength: 3 }),
          fc.integer({ min: 14, max: 2000 }),
          (h, s, damage, length) => {
            const p = pair(12, 0, 2048, 4096);
            try {
              const packet = build(s, mac(2), mac(1)).slice(0, 12 + length);
              packet.set(vnet(h));
              for (const [at, value] of damage) if (at >= 12 && at < packet.length - 12) packet[12 + at] = value;
              send(p, slots(packet, 12, 14, 700));
              if (malformed(packet, 12)) {
                assert.equal(p.tx.count('drop_bad'), 1);
                assert.deepEqual(receive(p), []);
              } else {
                assert.deepEqual(receive(p), convert(packet, 12, 0) ?? []);
              }
            } finally {
              rig.close();
            }
          },
        ),
        { numRuns: runs },
      );
      pair(0, 0);
    });
  });
}
