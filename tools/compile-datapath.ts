/** Compiles the datapath, AssemblyScript, to a WebAssembly module: the compiler's options. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const asc = fileURLToPath(new URL('../../node_modules/assemblyscript/bin/asc.js', import.meta.url));
const FLAGS =
  '--runtime stub --noAssert --optimizeLevel 3 --shrinkLevel 0 --disableWarning 112 ' +
  '--enable simd --enable threads --enable bulk-memory ' +
  '--importMemory --sharedMemory --noExportMemory --initialMemory 1 --maximumMemory 65536';

/** @param source its index.ts @param output the module */
export function compileDatapath(source: string, output: string): void {
  execFileSync(process.execPath, [asc, source, '--outFile', output, ...FLAGS.split(' ')], {
    cwd: join(source, '..'),
    stdio: ['ignore', 'inherit', 'inherit'],
  });
}
