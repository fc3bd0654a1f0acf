/** Regions: their layout, their pools of objects, and where their memory goes. */
import assert from 'node:assert/strict';
import { fstatSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { NETMAP_FIRST_BUF, netmap_if, netmap_ring, netmap_slot } from '../../../src/abi/index.ts';
import { loadDatapath } from '../../../src/kloop/datapath.ts';
import type { RegionConfig } from '../../../src/memory/index.ts';
import { Arena, ArenaSpace, Region, RegionFullError, regionLayout } from '../../../src/memory/index.ts';
import { F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, getSeals, PAGE_SIZE } from '../../../src/os/index.ts';

const config: RegionConfig = { name: 'r', interfaces: 2, rings: 4, slots: 64, buffers: 256, bufSize: 2048 };

const anyConfig = fc.record({
  name: fc.constant('any'),
  interfaces: fc.integer({ min: 1, max: 8 }),
  rings: fc.integer({ min: 1, max: 34 }),
  slots: fc.integer({ min: 16, max: 4096 }),
  buffers: fc.integer({ min: 0, max: 100_000 }),
  bufSize: fc.integer({ min: 1, max: 1023 }).map((n) => n * 64),
});

const shmem = () => Number(/^RssShmem:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;

describe('regionLayout', () => {
  it('pools are in order, page aligned, large enough, and do not overlap', () => {
    fc.assert(
      fc.property(anyConfig, (c) => {
        const { ifPool, ringPool, bufPool, size, fileSize } = regionLayout(c);
        const pools = [ifPool, ringPool, bufPool];
        for (const [i, p] of pools.entries()) {
          assert.equal(p.ofs % PAGE_SIZE, 0);
          assert.ok(p.ofs + p.objnum * p.objsz <= (pools[i + 1]?.ofs ?? size));
        }
        assert.equal(size % PAGE_SIZE, 0);
        assert.ok(fileSize >= size && fileSize < 2 * size && Number.isInteger(Math.log2(fileSize)));
        assert.deepEqual(
          [ifPool.objnum, ringPool.objnum, bufPool.objnum],
          [c.interfaces, c.rings, c.buffers + NETMAP_FIRST_BUF],
        );
        assert.ok(ringPool.objsz >= netmap_ring.size + c.slots * netmap_slot.size);
        assert.equal(ringPool.objsz % 128, 0);
        assert.equal(bufPool.objsz, c.bufSize);
        // A guest that opens a host ring writes a whole ring over its netmap_if: nothing else may be hit.
        assert.ok(ifPool.objsz >= netmap_ring.size + c.slots * netmap_slot.size);
        assert.ok(ifPool.objsz >= netmap_if.size + 8 * (c.rings + 2));
      }),
    );
  });

  it('refuses buffer sizes that are no multiples of 64, or too large for a slot’s len', () => {
    for (const bufSize of [0, 32, 100, 65536, -64]) {
      assert.throws(() => regionLayout({ ...config, bufSize }), /buffer size/);
    }
    assert.throws(() => regionLayout({ ...config, slots: 2, rings: 64 }), /too few/);
  });
});

describe('Region', () => {
  it('R1: its file has a power of two of bytes and is sealed against shrinking, growing and further seals', () => {
    const region = new Region(config, 1);
    assert.equal(fstatSync(region.fd).size, region.layout.fileSize);
    assert.equal(
      getSeals(region.fd) & (F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_SHRINK),
      F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_SHRINK,
    );
    region.close();
  });

  it('is mapped once per arena, with the same bytes in each', () => {
    const spaces = [new ArenaSpace(Arena.create()), new ArenaSpace(Arena.create(), 0xb000_0000)] as const;
    const region = new Region(config, 1);
    const at = spaces.map((s) => region.mapInto(s));
    assert.deepEqual(
      spaces.map((s) => region.mapInto(s)),
      at,
    );
    spaces[0].arena.m.u32[(at[0]! + region.layout.size - 4) >>> 2] = 77;
    assert.equal(spaces[1].arena.m.u32[(at[1]! + region.layout.size - 4) >>> 2], 77);
    region.close();
  });

  it('close gives every page and every address back, in all arenas', () => {
    const space = new ArenaSpace(Arena.create());
    const free = space.freeBytes;
    const before = shmem();
    const region = new Region({ ...config, buffers: 16_384 }, 1);
    const at = region.mapInto(space);
    space.arena.m.u8.fill(1, at, at + region.layout.size);
    assert.ok(shmem() - before >= region.layout.size);
    region.close();
    assert.ok(shmem() - before < region.layout.size / 4);
    assert.equal(space.freeBytes, free);
    assert.throws(() => fstatSync(region.fd), /EBADF/);
  });

  it('R2: guard pages before and behind it trap', () => {
    const space = new ArenaSpace(Arena.create());
    const region = new Region(config, 1);
    const at = region.mapInto(space);
    const dp = loadDatapath(space.arena.memory);
    // valeInit writes one word at the address it gets.
    for (const outside of [at - 4, at - PAGE_SIZE, at + region.layout.size]) {
      assert.throws(() => dp.valeInit(outside), WebAssembly.RuntimeError);
    }
    dp.valeInit(at);
    dp.valeInit(at + region.layout.size - 4);
    region.close();
  });

  it('pools: no object is handed out twice, none is lost, lowest first', () => {
    const region = new Region(config, 1);
    fc.assert(
      fc.property(fc.array(fc.record({ take: fc.nat(80), give: fc.nat(5) }), { maxLength: 30 }), (ops) => {
        const held: number[][] = [];
        for (const { take, give } of ops) {
          const free = region.free.buffers;
          if (take > free) assert.throws(() => region.takeBuffers(take), RegionFullError);
          else held.push(region.takeBuffers(take));
          const all = held.flat();
          assert.equal(new Set(all).size, all.length);
          assert.ok(all.every((i) => i >= NETMAP_FIRST_BUF && i < region.layout.bufPool.objnum));
          assert.equal(region.free.buffers, config.buffers - all.length);
          const back = held[give];
          if (back === undefined) continue;
          region.giveBuffers(back.toReversed());
          held.splice(give, 1);
        }
        for (const h of held) region.giveBuffers(h);
        assert.deepEqual(region.takeBuffers(3), [2, 3, 4]);
        region.giveBuffers([2, 3, 4]);
        assert.equal(region.free.buffers, config.buffers);
      }),
    );
    region.close();
  });

  it('what is not out cannot be given back, nor twice: one object would have two users', () => {
    const region = new Region(config, 1);
    const [a, b] = region.takeBuffers(2) as [number, number];
    for (const wrong of [[a, b, a], [b, b + 1], [0], [-1], [config.buffers + 100]]) {
      assert.throws(() => region.giveBuffers(wrong), /region "r": buffers -?\d+ is not out/);
      assert.equal(region.free.buffers, config.buffers - 2, 'none is taken back');
    }
    region.giveBuffers([b, a]);
    assert.throws(() => region.giveBuffers([a]), RangeError);
    assert.equal(region.free.buffers, config.buffers);
    region.close();
  });

  it('rings and interfaces are byte offsets in their pools, and come back', () => {
    const region = new Region(config, 9);
    const { ringPool, ifPool } = region.layout;
    const rings = region.takeRings(4);
    assert.deepEqual(
      rings,
      [0, 1, 2, 3].map((i) => ringPool.ofs + i * ringPool.objsz),
    );
    assert.throws(() => region.takeRings(1), /region "r" has 0 free rings, 1 wanted/);
    region.giveRings(rings.slice(1, 3));
    assert.deepEqual(region.takeRings(2), rings.slice(1, 3));
    const nifp = [region.takeInterface(), region.takeInterface()];
    assert.deepEqual(nifp, [ifPool.ofs, ifPool.ofs + ifPool.objsz]);
    assert.throws(() => region.takeInterface(), RegionFullError);
    region.giveInterface(nifp[0]!);
    assert.equal(region.takeInterface(), nifp[0]);
    assert.deepEqual(region.free, { interfaces: 0, rings: 0, buffers: 256 });
    region.close();
  });
});
