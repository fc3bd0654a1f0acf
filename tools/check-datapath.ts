/**
 * What must hold of the datapath beyond its types: R4 (the module is code and nothing else), R5 (memory that a peer
 * can write is touched in the files named here only) and R2 (where bulk-memory instructions may stand). Each check returns its complaints.
 */
import { basename } from 'node:path';

/** Files that may touch peers' memory. */
const PEER_FILES = ['peer.ts', 'copy.ts', 'offload-copy.ts', 'nic-rings.ts'];
/** Helpers on lists and counters of private memory, whose addresses are computed. */
const PRIVATE_FILES = ['private.ts'];
const peerLayout = /\b(netmap_(slot|ring|if)|nm_csb_(atok|ktoa))_\w+/;
const access = /\b(load|store)<|\b(atomic|v128)\.(load|store|cmpxchg|rmw|wait|notify)|\bmemory\.(copy|fill|grow)/;
/** Bulk-memory instructions end the process where others trap (R2): `copyBulk` of copy.ts alone uses one. */
const bulk = /\bmemory\.(copy|fill|init)\b/;
const privateLayout = /\b(kring|port|domain|hash_ent|nm_bdg_fwd|vnet_ent|offload|nic_queue)_\w+\)/;

/** R5: outside those files, a load or store names the field of a private struct in the same line. R2: no bulk memory but in copy.ts. */
export function checkSource(file: string, text: string): string[] {
  const name = basename(file);
  const faults: string[] = [];
  for (const [i, line] of text.split('\n').entries()) {
    const fault = (what: string): void => void faults.push(`${name}:${i + 1}: ${what}: ${line.trim()}`);
    if (name !== 'copy.ts' && bulk.test(line)) fault('a bulk-memory instruction');
    if (PEER_FILES.includes(name) || name.endsWith('.generated.ts')) continue;
    if (peerLayout.test(line)) fault("a peer's field; use peer.ts");
    if (!PRIVATE_FILES.includes(name) && access.test(line) && !privateLayout.test(line)) {
      fault('an access that names no private field');
    }
    if (/\b(let|var)\b/.test(line) && /^(export )?(let|var)\b/.test(line)) fault('a mutable global');
  }
  return faults;
}

const SECTION_IMPORT = 2;
const SECTION_GLOBAL = 6;
const SECTION_START = 8;
const SECTION_DATA = 11;
const FLAGS_SHARED_WITH_MAXIMUM = 3;

/** R4: no data, no global, no start function; one import: the arena, shared, as large as 32 bits address. */
export function checkModule(wasm: Uint8Array): string[] {
  const faults: string[] = [];
  let p = 8;
  const u32 = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = wasm[p++]!;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  const text = (): string => {
    const n = u32();
    p += n;
    return new TextDecoder().decode(wasm.subarray(p - n, p));
  };
  while (p < wasm.length) {
    const id = wasm[p++]!;
    const end = u32() + p;
    if (id === SECTION_GLOBAL && u32() !== 0) faults.push('R4: the module has a global');
    if (id === SECTION_DATA && u32() !== 0) faults.push('R4: the module has a data segment');
    if (id === SECTION_START) faults.push('R4: the module has a start function');
    if (id === SECTION_IMPORT) {
      const n = u32();
      const what = `${text()}.${text()} ${u32()} ${u32()} ${u32()} ${u32()}`;
      if (n !== 1 || what !== `env.memory 2 ${FLAGS_SHARED_WITH_MAXIMUM} 1 65536`) {
        faults.push(`the module imports something other than the arena (${n} imports, first: ${what})`);
      }
    }
    p = end;
  }
  return faults;
}
