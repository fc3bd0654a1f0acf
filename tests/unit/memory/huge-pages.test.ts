/** Regions on huge pages: all of their memory is there from the beginning, or they lie on ordinary pages and say why. */
import assert from 'node:assert/strict';
import { fstatSync } from 'node:fs';
import { after, describe, it } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { loadDatapath } from '../../../src/kloop/datapath.ts';
import { Arena, ArenaSpace, Region, type RegionConfig } from '../../../src/memory/index.ts';
import {
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  getSeals,
  HUGE_PAGE,
  hugePages,
  PAGE_SIZE,
  pageBytesOf,
  XDP_PACKET_HEADROOM,
} from '../../../src/os/index.ts';
import { borrowHugePages } from './huge-pages.ts';

const config: RegionConfig = { name: 'r', interfaces: 2, rings: 4, slots: 64, buffers: 2048, bufSize: 2048 };
const huge = await borrowHugePages(8);
after(() => huge.giveBack());

describe('Region on huge pages', { skip: huge.skip }, () => {
  it('R1: its file is sealed, and all of its pages are there before anyone gets it', () => {
    const region = new Region({ ...config, hugePages: true }, 1);
    assert.equal(region.because, undefined);
    const { size, fileSize, barSize, pageBytes } = region.layout;
    const stat = fstatSync(region.fd);
    assert.equal(pageBytesOf(region.fd), HUGE_PAGE);
    assert.deepEqual([pageBytes, size, fileSize, barSize], [HUGE_PAGE, 3 * HUGE_PAGE, 3 * HUGE_PAGE, 4 * HUGE_PAGE]);
    assert.deepEqual([stat.size, stat.blocks * 512], [fileSize, fileSize]);
    assert.equal(getSeals(region.fd), F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_SHRINK);
    region.close();
  });

  it('a buffer that, with its headroom, goes over the end of a huge page is nobody’s; there are enough others', () => {
    for (const bufSize of [2048, 1984, 3840]) {
      const region = new Region({ ...config, buffers: 3000, bufSize, hugePages: true }, 1);
      const { ofs, objnum } = region.layout.bufPool;
      const buffers = region.takeBuffers(3000);
      assert.ok(objnum > 3002 && objnum < 3010);
      for (const i of buffers) {
        const [first, last] = [ofs + i * bufSize - XDP_PACKET_HEADROOM, ofs + (i + 1) * bufSize - 1];
        assert.equal(Math.floor(first / HUGE_PAGE), Math.floor(last / HUGE_PAGE), `buffer ${i}`);
      }
      assert.equal(region.free.buffers, 0);
      region.close();
    }
  });

  it('R2: is mapped into arenas, guard pages before and behind it; close gives addresses and pages back', async () => {
    const spaces = [new ArenaSpace(Arena.create()), new ArenaSpace(Arena.create(), 0xb000_1000)] as const;
    const [first, second] = spaces;
    const before = { addresses: spaces.map((s) => s.freeBytes), pages: hugePages().free };
    const region = new Region({ ...config, hugePages: true }, 1);
    const [a, b] = spaces.map((s) => region.mapInto(s)) as [number, number];
    const last = region.layout.size - 4;
    for (const [space, at] of [
      [first, a],
      [second, b],
    ] as const) {
      assert.equal(space.arena.addressOf(at) % HUGE_PAGE, 0);
      const dp = loadDatapath(space.arena.memory);
      // valeInit writes one word at the address it gets.
      for (const outside of [at - 4, at + last + 4]) {
        assert.throws(() => dp.valeInit(outside), WebAssembly.RuntimeError);
      }
      dp.valeInit(at + last);
    }
    first.arena.m.u32[(a + last) >>> 2] = 77;
    assert.equal(second.arena.m.u32[(b + last) >>> 2], 77);
    region.close();
    assert.deepEqual(
      spaces.map((s) => s.freeBytes),
      before.addresses,
    );
    for (let i = 0; hugePages().free !== before.pages; i++) {
      assert.ok(i < 500, `${hugePages().free} pages are free, ${before.pages} were`);
      await setTimeout(10);
    }
  });
});

it('R1: a region for which there are not enough huge pages lies on ordinary ones, and says why', () => {
  const buffers = (hugePages().free + 8) * 1024;
  const region = new Region({ ...config, buffers, hugePages: true }, 1);
  assert.match(
    region.because!,
    /^\d+ huge pages of 2 MiB for "ptnet:r": \d+ are free \(as root, raise vm\.nr_hugepages\): ENOMEM$/,
  );
  assert.equal(region.layout.pageBytes, PAGE_SIZE);
  assert.equal(pageBytesOf(region.fd), PAGE_SIZE);
  const space = new ArenaSpace(Arena.create());
  const at = region.mapInto(space);
  space.arena.m.u32[at >>> 2] = 5;
  region.close();
});
