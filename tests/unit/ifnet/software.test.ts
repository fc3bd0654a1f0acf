/** Receive offloads in software (-rxcsum, -lro): the same frames as the naive implementation makes. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { softwareReceive } from '../../../src/guest/ifnet-software.ts';
import { mac } from '../datapath/rig.ts';
import { convert } from '../offload/naive.ts';
import { build, shape } from '../offload/packets.ts';

describe('receive offloads in software', () => {
  it('random packets without rxcsum and lro: complete frames behind headers of zeros', () => {
    fc.assert(
      fc.property(shape, fc.constantFrom(10, 12), (s, hdr) => {
        if (s.udp && s.gsoSize > 0) return;
        const packet = build(s, mac(2), mac(1), hdr);
        const frames = softwareReceive(packet.slice(), hdr, { rxcsum: false, lro: false });
        for (const frame of frames) assert.ok(frame.subarray(0, hdr).every((byte) => byte === 0));
        assert.deepEqual(
          frames.map((frame) => frame.slice(hdr)),
          convert(packet, hdr, 0),
        );
      }),
    );
  });

  it('with rxcsum or lro on, the packet keeps that part of its header', () => {
    fc.assert(
      fc.property(shape, (s) => {
        const packet = build(s, mac(2), mac(1));
        const pending = s.gsoSize === 0;
        if (pending) assert.deepEqual(softwareReceive(packet.slice(), 12, { rxcsum: true, lro: false }), [packet]);
      }),
    );
  });

  it('a checksum beyond the frame or a header that is cut off: nothing is delivered', () => {
    const off = { rxcsum: false, lro: false };
    assert.deepEqual(softwareReceive(Uint8Array.of(1, 0, 0, 0, 0, 0, 50, 0, 0, 0, ...new Uint8Array(50)), 10, off), []);
    const tcp = Uint8Array.of(1, 1, 0, 0, 0, 5, 34, 0, 16, 0, ...new Uint8Array(52));
    assert.deepEqual(softwareReceive(tcp, 10, off), []);
  });
});
