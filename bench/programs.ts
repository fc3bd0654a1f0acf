/** The C programs of bench/c: compiled when they are needed, if the machine has a compiler. */
import { execFile, execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { program } from './process.ts';

const run = promisify(execFile);

/** Sources stand in bench/c, this file is run from dist/bench; programs go to dist/bench/c. */
const SOURCES = fileURLToPath(new URL('../../bench/c/', import.meta.url));
const PROGRAMS = fileURLToPath(new URL('c/', import.meta.url));
const RINGS = ['rings.c', 'vale.c'];
/** Sources, and the machine to compile for; `rings16`: with registers of 16 bytes at most, as WebAssembly has them. */
const FILES: Readonly<Record<string, readonly [march: string, ...files: string[]]>> = {
  rings: ['native', ...RINGS],
  rings16: ['x86-64-v2', ...RINGS],
  peers: ['native', 'peers.c'],
  packet: ['native', 'packet.c'],
};

/** Where a compiled program is. */
export const programPath = (name: string): string => PROGRAMS + name;

/** Compiles all. @returns a function that runs one and gives its numbers, or why there is none */
export function compilePrograms(): ((name: string, args: readonly (string | number)[]) => Promise<number[]>) | string {
  const cc = program('cc');
  if (cc === undefined) return 'no C compiler (cc) on PATH';
  mkdirSync(PROGRAMS, { recursive: true });
  for (const [name, [march, ...files]] of Object.entries(FILES)) {
    const sources = files.map((file) => SOURCES + file);
    execFileSync(cc, ['-O3', `-march=${march}`, '-std=c11', '-o', programPath(name), ...sources], { stdio: 'inherit' });
  }
  return async (name, args) => {
    const { stdout } = await run(programPath(name), args.map(String), { timeout: 60_000 });
    const numbers = stdout.trim().split(/\s+/).map(Number);
    if (numbers.some(Number.isNaN)) throw new Error(`${name} ${args.join(' ')} printed "${stdout.trim()}"`);
    return numbers;
  };
}
