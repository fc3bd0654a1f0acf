/** The table of client memory against a naive model that knows every page. */
import assert from 'node:assert/strict';
import { fstatSync } from 'node:fs';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { memfd } from '../../src/os/index.ts';
import { DmaTable, VfioUserError } from '../../src/vfio-user/index.ts';
import { openFds } from '../unit/vfio-user/support.ts';

const EEXIST = 17;
const ENOSPC = 28;
const PAGE = 4096n;
const PAGES = 32;

type Op =
  | { readonly op: 'map'; readonly page: number; readonly pages: number; readonly file: number; readonly fd: boolean }
  | { readonly op: 'unmap' | 'lookup'; readonly page: number; readonly pages: number };

const range = { page: fc.nat(PAGES - 1), pages: fc.integer({ min: 1, max: PAGES }) };
const ops: fc.Arbitrary<Op[]> = fc.array(
  fc.oneof(
    fc.record({
      op: fc.constant('map' as const),
      ...range,
      pages: fc.integer({ min: 1, max: 6 }),
      file: fc.nat(9),
      fd: fc.boolean(),
    }),
    fc.record({
      op: fc.constantFrom('unmap' as const, 'lookup' as const),
      ...range,
      pages: fc.integer({ min: 1, max: 8 }),
    }),
  ),
  { maxLength: 60 },
);

/** What the model knows of a page: which mapping it is of, and where in the file it is. */
interface Page {
  readonly mapping: number;
  readonly ino: number | undefined;
  readonly filePage: number;
}

for (const base of [0n, (1n << 64n) - BigInt(PAGES) * PAGE]) {
  test(`DMA table at 0x${base.toString(16)}: same as the model; every descriptor is closed once its pages are gone`, () => {
    fc.assert(
      fc.property(ops, (list) => {
        const before = openFds();
        const table = new DmaTable();
        const model: (Page | undefined)[] = Array.from({ length: 2 * PAGES });
        list.forEach((o, mapping) => {
          const pages = Math.min(o.pages, PAGES - o.page);
          const where = { iova: base + BigInt(o.page) * PAGE, size: BigInt(pages) * PAGE };
          const there = model.slice(o.page, o.page + pages);
          if (o.op === 'map') {
            const fd = o.fd ? memfd('dma', 4096) : undefined;
            const ino = fd === undefined ? undefined : fstatSync(fd).ino;
            const map = { ...where, flags: 3, offset: BigInt(o.file) * PAGE, fd };
            if (there.some((p) => p !== undefined)) {
              assert.throws(
                () => table.map(map),
                (e) => e instanceof VfioUserError && e.errno === EEXIST,
              );
            } else {
              table.map(map);
              for (let i = 0; i < pages; i++) model[o.page + i] = { mapping, ino, filePage: o.file + i };
            }
          } else if (o.op === 'unmap') {
            const touched = new Set<string>();
            for (let i = 0; i < pages; i++) {
              // One mapping with a hole is two pieces, between which lies a page that is not its own.
              const p = there[i];
              if (p !== undefined) touched.add(`${p.mapping} ${pieceStart(model, o.page + i)}`);
            }
            assert.equal(table.unmap(where.iova, where.size), touched.size);
            model.fill(undefined, o.page, o.page + pages);
          } else {
            const got = table.lookup(where.iova, where.size);
            const one = there.every((p) => p !== undefined && p.mapping === there[0]?.mapping && p.ino !== undefined);
            assert.equal(got !== undefined, one);
            if (got === undefined) return;
            assert.equal(got.fileOffset, there[0]!.filePage * 4096);
            assert.equal(fstatSync(got.fd).ino, there[0]!.ino);
          }
        });
        const mappings = new Set(model.filter((p) => p?.ino !== undefined).map((p) => p!.mapping));
        assert.equal(openFds() - before, mappings.size);
        table.clear();
        assert.equal(table.length, 0);
        assert.equal(openFds(), before);
      }),
      { numRuns: 150 },
    );
  });
}

/** First page of the run of pages of one mapping that a page is in. */
function pieceStart(model: readonly (Page | undefined)[], page: number): number {
  let at = page;
  while (at > 0 && model[at - 1]?.mapping === model[page]?.mapping) at--;
  return at;
}

test('DMA table: unmapping everything, nothing, and what firmware and virtual IOMMUs ask for', () => {
  const before = openFds();
  const table = new DmaTable();
  const map = (iova: bigint, size: bigint) => table.map({ iova, size, flags: 1, offset: 0n, fd: memfd('dma', 4096) });
  map(0x1000n, 0x1000n);
  map(0xfef00000n, 0x1000n);
  map((1n << 64n) - 0x1000n, 0x1000n);
  assert.equal(table.unmap(0x2000n, 0x1000n), 0);
  assert.equal(table.unmap(0x1000n, 0n), 0);
  assert.equal(table.unmap(0x1800n, 0n), 0);
  assert.notEqual(table.lookup(0x1000n, 0x1000n), undefined);
  assert.equal(table.lookup(0xfef00000n, 0x1000n)?.writable, false);
  assert.equal(table.unmap(0xfef00000n, 0xffffffff01100000n), 2);
  assert.equal(table.length, 1);
  assert.equal(table.unmap(0n, 1n << 64n), 1);
  assert.equal(openFds(), before);
});

test('DMA table: a client can make it hold so many mappings and no more', () => {
  const before = openFds();
  const table = new DmaTable(3);
  const map = (page: number) =>
    table.map({ iova: BigInt(page) * PAGE, size: PAGE, flags: 3, offset: 0n, fd: memfd('dma', 4096) });
  [0, 1, 2].forEach(map);
  assert.throws(
    () => map(3),
    (e) => e instanceof VfioUserError && e.errno === ENOSPC,
  );
  table.unmap(0n, PAGE);
  map(3);
  table.clear();
  assert.equal(openFds(), before);
});

test('R17: DMA table: nor by cutting a mapping into ever more pieces', () => {
  const before = openFds();
  const table = new DmaTable(3);
  table.map({ iova: 0n, size: 100n * PAGE, flags: 3, offset: 0n, fd: memfd('dma', 4096) });
  const hole = (page: number) => table.unmap(BigInt(page) * PAGE, PAGE);
  [10, 20].forEach(hole);
  assert.throws(
    () => hole(30),
    (e) => e instanceof VfioUserError && e.errno === ENOSPC,
  );
  assert.equal(table.length, 3);
  assert.notEqual(table.lookup(30n * PAGE, PAGE), undefined);
  // What leaves no more pieces than there were goes on.
  assert.equal(table.unmap(15n * PAGE, 10n * PAGE), 2);
  assert.equal(table.unmap(0n, 10n * PAGE), 1);
  assert.equal(hole(30), 1);
  assert.equal(table.length, 3);
  table.clear();
  assert.equal(openFds(), before);
});
