/**
 * The tables of src/abi against the numbers of the binary contract (docs/abi.md 1 and 2, compiled offsetof), typed in
 * here a second time on purpose.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as abi from '../../src/abi/index.ts';

const layouts = {
  netmap_if: {
    size: 56,
    ofs: {
      ni_name: 0,
      ni_version: 16,
      ni_flags: 20,
      ni_tx_rings: 24,
      ni_rx_rings: 28,
      ni_bufs_head: 32,
      ni_host_tx_rings: 36,
      ni_host_rx_rings: 40,
      ni_spare1: 44,
    },
  },
  netmap_ring: {
    size: 256,
    ofs: {
      buf_ofs: 0,
      num_slots: 8,
      nr_buf_size: 12,
      ringid: 16,
      dir: 18,
      head: 20,
      cur: 24,
      tail: 28,
      flags: 32,
      ts_sec: 40,
      ts_usec: 48,
      offset_mask: 56,
      buf_align: 64,
      sem: 128,
    },
  },
  netmap_slot: { size: 16, ofs: { buf_idx: 0, len: 4, flags: 6, ptr: 8 } },
  nm_csb_atok: { size: 64, ofs: { head: 0, cur: 4, appl_need_kick: 8, sync_flags: 12 } },
  nm_csb_ktoa: { size: 64, ofs: { hwcur: 0, hwtail: 4, kern_need_kick: 8 } },
} as const;

const widths = {
  ni_name: 16,
  ni_spare1: 12,
  sem: 128,
  buf_ofs: 8,
  ts_sec: 8,
  ts_usec: 8,
  offset_mask: 8,
  buf_align: 8,
  ptr: 8,
  ringid: 2,
  dir: 2,
  len: 2,
} as const;

const tables = [abi.netmap_if, abi.netmap_ring, abi.netmap_slot, abi.nm_csb_atok, abi.nm_csb_ktoa];

describe('abi: layouts of netmap’s public headers', () => {
  for (const [name, { size, ofs }] of Object.entries(layouts)) {
    it(name, () => {
      const table = tables.find((t) => t.name === name)!;
      assert.equal(table.size, size);
      assert.deepEqual(table.ofs, ofs);
      for (const [field, spec] of Object.entries(table.fields) as [string, abi.FieldSpec][]) {
        const narrow = name === 'netmap_slot' && field === 'flags' ? 2 : 4;
        assert.equal(abi.fieldBytes(spec), widths[field as keyof typeof widths] ?? narrow, field);
      }
    });
  }
});

describe('abi: constants', () => {
  it('of netmap', () => {
    const { NETMAP_API, NR_DIR_RX, NR_DIR_TX, NETMAP_FIRST_BUF, NETMAP_MAX_FRAGS } = abi;
    assert.deepEqual([NETMAP_API, NR_DIR_RX, NR_DIR_TX, NETMAP_FIRST_BUF, NETMAP_MAX_FRAGS], [14, 0, 1, 2, 64]);
    const flags = [
      abi.NS_BUF_CHANGED,
      abi.NS_REPORT,
      abi.NS_FORWARD,
      abi.NS_NO_LEARN,
      abi.NS_INDIRECT,
      abi.NS_MOREFRAG,
    ];
    assert.deepEqual(flags, [1, 2, 4, 8, 0x10, 0x20]);
    assert.deepEqual([abi.NS_RFRAGS_SHIFT, abi.NAF_FORCE_READ, abi.NAF_FORCE_RECLAIM], [8, 1, 2]);
    const limits = [abi.NM_BDG_MAXRINGS, abi.NM_BRIDGE_RINGSIZE, abi.NM_BRIDGE_MAXSLOTS, abi.NM_BDG_HASH];
    assert.deepEqual(limits, [16, 1024, 4096, 1024]);
  });

  it('of the PCI devices', () => {
    assert.deepEqual(
      [abi.PTNETMAP_PCI_VENDOR_ID, abi.PTNETMAP_PCI_DEVICE_ID, abi.PTNETMAP_PCI_NETIF_ID],
      [0x1b36, 0x0c, 0x0d],
    );
    assert.deepEqual([abi.PTNETMAP_PCI_CLASS, abi.PTNET_PCI_CLASS], [0xff0000, 0x020000]);
    assert.deepEqual([abi.PTNETMAP_MDEV_IO_SIZE, abi.PTNET_IO_SIZE, abi.PTNET_MAX_RINGS], [128, 256, 32]);
    assert.deepEqual([abi.PTNETMAP_PTCTL_CREATE, abi.PTNETMAP_PTCTL_DELETE, abi.PTNETMAP_F_VNET_HDR], [1, 2, 1]);
    assert.deepEqual([abi.PTNET_MSIX.TABLE, abi.PTNET_MSIX.PBA, abi.PCI.MSIX_CAP], [0, 2048, 0x40]);
    assert.equal(abi.PCI.COMMAND_MASK, 0x0507);
  });

  it('memdev BAR0', () => {
    assert.deepEqual(Object.entries(abi.PTNET_MDEV_IO), [
      ['MEMSIZE_LO', 0],
      ['MEMSIZE_HI', 4],
      ['MEMID', 8],
      ['IF_POOL_OFS', 64],
      ['IF_POOL_OBJNUM', 68],
      ['IF_POOL_OBJSZ', 72],
      ['RING_POOL_OFS', 76],
      ['RING_POOL_OBJNUM', 80],
      ['RING_POOL_OBJSZ', 84],
      ['BUF_POOL_OFS', 88],
      ['BUF_POOL_OBJNUM', 92],
      ['BUF_POOL_OBJSZ', 96],
      ['END', 100],
    ]);
  });

  it('ptnet BAR0', () => {
    assert.deepEqual(Object.entries(abi.PTNET_IO), [
      ['PTFEAT', 0],
      ['PTCTL', 4],
      ['MAC_LO', 8],
      ['MAC_HI', 12],
      ['CSBBAH', 16],
      ['CSBBAL', 20],
      ['NIFP_OFS', 24],
      ['NUM_TX_RINGS', 28],
      ['NUM_RX_RINGS', 32],
      ['NUM_TX_SLOTS', 36],
      ['NUM_RX_SLOTS', 40],
      ['VNET_HDR_LEN', 44],
      ['HOSTMEMID', 48],
      ['CSB_GH_BAH', 52],
      ['CSB_GH_BAL', 56],
      ['CSB_HG_BAH', 60],
      ['CSB_HG_BAL', 64],
      ['END', 68],
      ['KICK_BASE', 128],
    ]);
  });
});

describe('abi: host-private tables', () => {
  it('structs are whole cache lines, counters aligned to 8 and on lines of their own', () => {
    for (const s of [abi.kring, abi.port, abi.domain]) assert.equal(s.size % 64, 0, s.name);
    for (const [field, [ofs, type]] of Object.entries(abi.kring.fields))
      assert.equal(type === 'u64', ofs >= 128, field);
  });

  it('lists of a domain hold all rings of a full switch', () => {
    const rings = abi.NM_BDG_MAXPORTS * abi.NM_BDG_MAXRINGS;
    const { fields } = abi.domain;
    for (const list of [fields.tx_running, fields.rx_running, fields.dirty]) assert.ok(list[2] >= 4 * rings);
    assert.ok(fields.signals[2] >= 4 * 2 * rings);
    assert.ok(fields.ft[2] >= abi.nm_bdg_fwd.size * (abi.FT_GROUP + abi.NETMAP_MAX_FRAGS));
    assert.equal(fields.ht[2], abi.hash_ent.size * abi.NM_BDG_HASH);
  });
});

describe('abi: layout tables', () => {
  it('accessors read and write what the table says, unsigned, at any address', () => {
    const s = abi.struct('s', 64, { a: [1, 'u8'], b: [2, 'u16'], c: [4, 'u32'], d: [8, 'u64'], e: [16, 'i64'] });
    const m = abi.views(new ArrayBuffer(256));
    const p = 64;
    s.set.a(m, p, 0xfe);
    s.set.b(m, p, 0xfedc);
    s.set.c(m, p, 0xfedc_ba98);
    s.set.d(m, p, 0xfedc_ba98_7654_3210n);
    s.set.e(m, p, -2n);
    const read = [s.get.a(m, p), s.get.b(m, p), s.get.c(m, p), s.get.d(m, p), s.get.e(m, p)];
    assert.deepEqual(read, [0xfe, 0xfedc, 0xfedc_ba98, 0xfedc_ba98_7654_3210n, -2n]);
    assert.deepEqual(abi.dump(s, m, p).c, String(0xfedc_ba98));
    assert.deepEqual(Array.from(m.u8.subarray(p, p + 8)), [0, 0xfe, 0xdc, 0xfe, 0x98, 0xba, 0xdc, 0xfe]);
  });

  it('an inconsistent table is refused', () => {
    assert.throws(() => abi.struct('s', 8, { a: [2, 'u32'] }), /aligned/);
    assert.throws(() => abi.struct('s', 8, { a: [0, 'u32'], b: [2, 'u16'] }), /overlaps/);
    assert.throws(() => abi.struct('s', 8, { a: [8, 'u8'] }), /leaves/);
    assert.throws(() => abi.struct('s', 8, { a: [0, 'bytes'] }), /length/);
  });
});
