/** The built module and its sources: R4, R5, and docs/datapath.md against the code. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { checkModule, checkSource } from '../../../tools/check-datapath.ts';

const root = fileURLToPath(new URL('../../../..', import.meta.url));
const sources = ['src/datapath', 'src/kloop', 'src/abi', 'src/memory']
  .flatMap((dir) => readdirSync(join(root, dir)).map((name) => join(root, dir, name)))
  .filter((file) => file.endsWith('.ts'));
const text = new Map(sources.map((file) => [file, readFileSync(file, 'utf8')]));

/** A module of the given sections: [id, ...bytes]. */
const wasm = (...sections: number[][]): Uint8Array =>
  Uint8Array.from([
    0,
    97,
    115,
    109,
    1,
    0,
    0,
    0,
    ...sections.flatMap(([id, ...bytes]) => [id!, bytes.length, ...bytes]),
  ]);

describe('the datapath module', () => {
  it('R4: has no data segment, no global, no start function, and imports the arena only', () => {
    const url = new URL('../../../src/datapath/datapath.wasm', import.meta.url);
    assert.deepEqual(checkModule(readFileSync(url)), []);
  });

  it('R4: the check finds what it looks for', () => {
    const memory = [3, 101, 110, 118, 6, 109, 101, 109, 111, 114, 121, 2];
    const pages = [0x80, 0x80, 4];
    assert.deepEqual(checkModule(wasm([2, 1, ...memory, 3, 1, ...pages])), []);
    assert.equal(checkModule(wasm([2, 1, ...memory, 1, 1, 2])).length, 1, 'another memory');
    assert.equal(checkModule(wasm([2, 2, ...memory, 3, ...pages, ...pages])).length, 1, 'a second import');
    assert.equal(checkModule(wasm([6, 1, 0x7f, 1, 0x41, 0, 0x0b])).length, 1, 'a mutable global');
    assert.equal(checkModule(wasm([11, 1, 0, 0x41, 0, 0x0b, 1, 7])).length, 1, 'data');
    assert.equal(checkModule(wasm([8, 0])).length, 1, 'a start function');
  });

  it('R5: only peer.ts and copy.ts touch memory that a peer can write', () => {
    for (const [file, source] of text) {
      if (file.includes('src/datapath')) assert.deepEqual(checkSource(file, source), []);
    }
  });

  it('R5: the lint finds what it looks for', () => {
    const bad = [
      'const len = load<u16>(slot, netmap_slot_len);',
      'const head = load<u32>(atok + 4);',
      'const head = atomic.load<u32>(atok);',
      'v128.store(dst, x);',
      'memory.copy(dst, src, len);',
      'let calls = 0;',
    ];
    for (const line of bad) assert.equal(checkSource('vale.ts', line).length > 0, true, line);
    assert.deepEqual(checkSource('vale.ts', 'store<u32>(kr, head, kring_rhead);'), []);
    assert.deepEqual(checkSource('peer.ts', 'return load<u16>(slot, netmap_slot_len);'), []);
  });

  it('R2: bulk memory, which ends the process on an unmapped page, in copy.ts only', () => {
    for (const line of ['memory.copy(dst, src, len);', 'memory.fill(dst, 0, len);']) {
      for (const file of ['peer.ts', 'offload-copy.ts', 'vale.ts'])
        assert.notDeepEqual(checkSource(file, line), [], file);
      assert.deepEqual(checkSource('copy.ts', line), []);
    }
  });
});

describe('docs/datapath.md', () => {
  it('names only functions that exist', () => {
    const code = [...text.values()].join('\n');
    const doc = readFileSync(join(root, 'docs/datapath.md'), 'utf8');
    const quoted = [...doc.matchAll(/`([A-Za-z_]\w*)`/g)];
    const calls = [...doc.matchAll(/^ {4,}(\w+) {2,}\w|^ {4,}(\w+)$/gm)];
    const names = new Set([...quoted, ...calls].map((m) => m[1] ?? m[2]!));
    assert.ok(names.size > 20);
    for (const name of names) assert.match(code, new RegExp(`\\b${name}\\b`), `docs/datapath.md names \`${name}\``);
  });

  it('names every counter of the kring', () => {
    const doc = readFileSync(join(root, 'docs/datapath.md'), 'utf8');
    const host = readFileSync(join(root, 'src/abi/host.ts'), 'utf8');
    for (const [, name] of host.matchAll(/^ {2}(\w+): \[\d+, 'u64'\]/gm)) assert.ok(doc.includes(`\`${name}\``), name);
  });
});
