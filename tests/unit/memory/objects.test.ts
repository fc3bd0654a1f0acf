/** netmap_if and netmap_ring as they are written into a region. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NR_DIR_RX, NR_DIR_TX, netmap_if, netmap_ring, netmap_slot, views } from '../../../src/abi/index.ts';
import { writeNetmapIf, writeRing } from '../../../src/memory/index.ts';

const REGION = 8192;

describe('writeNetmapIf', () => {
  const m = views(new ArrayBuffer(65536));
  const record = { name: 'vale0:a-very-long-name', nifpOfs: 512, txRings: [4096, 8192], rxRings: [12288, 256] };
  m.u8.fill(0xff);
  writeNetmapIf(m, REGION, 1024, record);
  const p = REGION + 512;

  it('says what the interface has, and cuts the name to fit with its NUL', () => {
    assert.equal(Buffer.from(m.u8.subarray(p, p + 16)).toString('latin1'), 'vale0:a-very-lo\0');
    const fields = [
      'ni_version',
      'ni_flags',
      'ni_tx_rings',
      'ni_rx_rings',
      'ni_bufs_head',
      'ni_host_tx_rings',
    ] as const;
    assert.deepEqual(
      fields.map((f) => netmap_if.get[f](m, p)),
      [14, 0, 2, 2, 0, 1],
    );
    assert.equal(netmap_if.get.ni_host_rx_rings(m, p), 1);
  });

  it('ring_ofs: tx, host tx, rx, host rx, relative to the netmap_if; 0 for host rings', () => {
    const ofs = Array.from({ length: 6 }, (_, i) => Number(BigInt.asIntN(64, m.u64[(p + netmap_if.size) / 8 + i]!)));
    assert.deepEqual(ofs, [4096 - 512, 8192 - 512, 0, 12288 - 512, 256 - 512, 0]);
  });

  it('writes the whole object and nothing else', () => {
    assert.equal(m.u8[p - 1], 0xff);
    assert.equal(m.u8[p + 1024], 0xff);
    assert.ok(m.u8.subarray(p + netmap_if.size + 48, p + 1024).every((b) => b === 0));
  });
});

describe('writeRing', () => {
  for (const [dir, tail] of [
    [NR_DIR_TX, 7],
    [NR_DIR_RX, 0],
  ] as const) {
    it(`dir ${dir}: tail ${tail}, buffers in order, everything else zero`, () => {
      const m = views(new ArrayBuffer(65536));
      m.u8.fill(0xff);
      const p = REGION + 1024;
      writeRing(m, REGION, 16384, 2048, { ringOfs: 1024, dir, ringId: 3, numSlots: 8 }, [9, 8, 7, 6, 5, 4, 3, 2]);
      assert.equal(netmap_ring.get.buf_ofs(m, p), 16384n - 1024n);
      const fields = ['num_slots', 'nr_buf_size', 'ringid', 'dir', 'head', 'cur', 'tail', 'flags'] as const;
      assert.deepEqual(
        fields.map((f) => netmap_ring.get[f](m, p)),
        [8, 2048, 3, dir, 0, 0, tail, 0],
      );
      const slots = Array.from({ length: 8 }, (_, i) => p + netmap_ring.size + i * netmap_slot.size);
      assert.deepEqual(
        slots.map((s) => netmap_slot.get.buf_idx(m, s)),
        [9, 8, 7, 6, 5, 4, 3, 2],
      );
      for (const s of slots) assert.ok(m.u8.subarray(s + 4, s + 16).every((b) => b === 0));
      const end = p + netmap_ring.size + 8 * netmap_slot.size;
      assert.deepEqual([m.u8[p - 1], m.u8[end]], [0xff, 0xff]);
    });
  }
});
