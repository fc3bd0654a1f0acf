/** Arenas: mapping, giving pages back, and what happens where nothing is mapped. ArenaSpace: ranges and guards. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import * as fc from 'fast-check';
import { domain } from '../../../src/abi/index.ts';
import { loadDatapath } from '../../../src/kloop/datapath.ts';
import { Arena, ARENA_BYTES, ArenaFullError, ArenaSpace, pageRound } from '../../../src/memory/index.ts';
import { closeFd, memfd, PAGE_SIZE } from '../../../src/os/index.ts';

const MiB = 2 ** 20;
const HIGH = 0xc000_0000;
/** Resident memory of this process, bytes: shared files and anonymous pages apart. */
const resident = (what: 'RssShmem' | 'RssAnon'): number =>
  Number(new RegExp(`^${what}:\\s+(\\d+) kB`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;

describe('Arena', () => {
  it('is 4 GiB of address space and costs next to nothing', () => {
    const before = resident('RssAnon');
    const arenas = Array.from({ length: 3 }, () => Arena.create());
    assert.ok(arenas.every((a) => a.bytes === ARENA_BYTES));
    assert.ok(resident('RssAnon') - before < 32 * MiB);
  });

  it('maps a file so that every arena, and the file, have the same bytes', () => {
    const arenas = [Arena.create(16 * MiB), Arena.create(16 * MiB)] as const;
    const fd = memfd('arena-test', 4 * PAGE_SIZE);
    arenas[0].mapFile(PAGE_SIZE, 4 * PAGE_SIZE, fd, 0);
    arenas[1].mapFile(5 * PAGE_SIZE, PAGE_SIZE, fd, 2 * PAGE_SIZE);
    closeFd(fd);
    arenas[0].m.u32[(3 * PAGE_SIZE + 8) >>> 2] = 0xdead_beef;
    assert.equal(arenas[1].m.u32[(5 * PAGE_SIZE + 8) >>> 2], 0xdead_beef);
    for (const arena of arenas) arena.unmap(0, arena.bytes);
  });

  it('R3: maps and reaches memory above 2 GiB', () => {
    const arena = Arena.create();
    const at = ARENA_BYTES - PAGE_SIZE;
    arena.mapAnonymous(HIGH, PAGE_SIZE);
    arena.mapAnonymous(at, PAGE_SIZE);
    arena.m.u8[ARENA_BYTES - 1] = 7;
    arena.m.u32[HIGH >>> 2] = 1;
    assert.deepEqual([arena.m.u8[at + PAGE_SIZE - 1], arena.m.u8[HIGH]], [7, 1]);
    arena.unmap(HIGH, PAGE_SIZE);
    arena.unmap(at, PAGE_SIZE);
  });

  it('a thread that wraps the same memory sees and maps the same', async () => {
    const arena = Arena.create();
    arena.mapAnonymous(HIGH, PAGE_SIZE);
    arena.m.u32[HIGH >>> 2] = 41;
    const code = `
      const { parentPort, workerData } = require('node:worker_threads');
      import(workerData.module).then(({ Arena }) => {
        const arena = new Arena(workerData.memory);
        arena.mapAnonymous(${HIGH + PAGE_SIZE}, ${PAGE_SIZE});
        arena.m.u32[${(HIGH + PAGE_SIZE) / 4}] = arena.m.u32[${HIGH / 4}] + 1;
        parentPort.postMessage('done');
      });`;
    const module = new URL('../../../src/memory/index.js', import.meta.url).href;
    const worker = new Worker(code, { eval: true, workerData: { memory: arena.memory, module } });
    await new Promise((resolve) => worker.once('message', resolve));
    await worker.terminate();
    assert.equal(arena.m.u32[(HIGH + PAGE_SIZE) >>> 2], 42);
    arena.unmap(HIGH, 2 * PAGE_SIZE);
  });

  it('unmap gives every page back, and a new mapping is zeroed', () => {
    const arena = Arena.create();
    const bytes = 64 * MiB;
    const before = resident('RssAnon');
    arena.mapAnonymous(HIGH, bytes);
    arena.m.u8.fill(1, HIGH, HIGH + bytes);
    assert.ok(resident('RssAnon') - before >= bytes);
    arena.unmap(HIGH, bytes);
    assert.ok(resident('RssAnon') - before < bytes / 4);
    arena.mapAnonymous(HIGH, PAGE_SIZE);
    assert.ok(arena.m.u8.subarray(HIGH, HIGH + PAGE_SIZE).every((b) => b === 0));
    arena.unmap(HIGH, PAGE_SIZE);
  });

  it('R2: the datapath traps where nothing is mapped, and the process lives', () => {
    const arena = Arena.create();
    const dp = loadDatapath(arena.memory);
    for (const at of [PAGE_SIZE, HIGH, ARENA_BYTES - domain.size]) {
      assert.throws(() => dp.valeInit(at), WebAssembly.RuntimeError);
      assert.throws(() => dp.serve(at), WebAssembly.RuntimeError);
    }
  });

  it('refuses ranges that are not whole pages or leave the arena', () => {
    const arena = Arena.create(MiB);
    for (const [ofs, bytes] of [
      [1, PAGE_SIZE],
      [0, 100],
      [0, 0],
      [-PAGE_SIZE, PAGE_SIZE],
      [MiB, PAGE_SIZE],
      [0, MiB + PAGE_SIZE],
      [Number.NaN, PAGE_SIZE],
    ] as const) {
      assert.throws(() => arena.mapAnonymous(ofs, bytes), RangeError, `${ofs} + ${bytes}`);
      assert.throws(() => arena.unmap(ofs, bytes), RangeError);
      assert.throws(() => arena.mapFile(ofs, bytes, -1, 0), RangeError);
    }
  });

  it('R2: a file mapped read-only cannot be written by the datapath', () => {
    const arena = Arena.create();
    const fd = memfd('read-only', domain.size);
    arena.mapFile(HIGH, domain.size, fd, 0, false);
    closeFd(fd);
    const dp = loadDatapath(arena.memory);
    assert.equal(dp.serve(HIGH), 0, 'reading works');
    assert.throws(() => dp.valeInit(HIGH), WebAssembly.RuntimeError);
    arena.unmap(HIGH, domain.size);
  });
});

describe('ArenaSpace', () => {
  const arena = Arena.create();

  it('R2: ranges never meet: guard pages stand round each, whatever was allocated and freed before', () => {
    const op = fc.record({ pages: fc.integer({ min: 1, max: 50_000 }), align: fc.nat(10), free: fc.nat(20) });
    fc.assert(
      fc.property(fc.constantFrom(0, PAGE_SIZE, HIGH), fc.array(op, { maxLength: 60 }), (start, ops) => {
        const space = new ArenaSpace(arena, start);
        const all = space.freeBytes;
        const taken: { ofs: number; bytes: number }[] = [];
        for (const { pages, align, free } of ops) {
          const bytes = pages * PAGE_SIZE - (pages % 7);
          const boundary = PAGE_SIZE * 2 ** align;
          try {
            const ofs = space.alloc(bytes, boundary);
            assert.equal(ofs % boundary, 0);
            assert.ok(ofs >= Math.max(start, PAGE_SIZE) + PAGE_SIZE && ofs + bytes + PAGE_SIZE <= arena.bytes);
            for (const t of taken) {
              const gap = ofs > t.ofs ? ofs - (t.ofs + t.bytes) : t.ofs - (ofs + pageRound(bytes));
              assert.ok(gap >= PAGE_SIZE, `gap of ${gap}`);
            }
            taken.push({ ofs, bytes: pageRound(bytes) });
          } catch (e) {
            assert.ok(e instanceof ArenaFullError);
          }
          const victim = taken[free];
          if (victim !== undefined) {
            space.free(victim.ofs);
            taken.splice(free, 1);
          }
        }
        for (const t of taken) space.free(t.ofs);
        assert.equal(space.freeBytes, all);
        assert.equal(space.freeRanges.length, 1, 'freed neighbours grow together');
      }),
      { numRuns: 60 },
    );
  });

  it('page 0 is never handed out', () => {
    assert.ok(new ArenaSpace(arena, 0).alloc(1) >= 2 * PAGE_SIZE);
  });

  it('says how much is free when there is not enough in one piece', () => {
    const small = Arena.create(MiB);
    const space = new ArenaSpace(small);
    assert.throws(() => space.alloc(2 * MiB), /no 2097152 contiguous bytes/);
    const kept = space.alloc(300 * 1024);
    space.alloc(300 * 1024);
    space.free(kept);
    assert.throws(() => space.alloc(500 * 1024), ArenaFullError);
    assert.equal(space.alloc(300 * 1024), kept, 'first fit');
  });

  it('a range is freed once', () => {
    const space = new ArenaSpace(arena);
    const ofs = space.alloc(1);
    assert.throws(() => space.free(ofs + PAGE_SIZE), RangeError);
    space.free(ofs);
    assert.throws(() => space.free(ofs), RangeError);
  });

  it('free unmaps', () => {
    const space = new ArenaSpace(arena);
    const ofs = space.alloc(domain.size);
    arena.mapAnonymous(ofs, domain.size);
    const dp = loadDatapath(arena.memory);
    dp.valeInit(ofs);
    space.free(ofs);
    assert.throws(() => dp.serve(ofs), WebAssembly.RuntimeError);
  });
});
