/**
 * Builds the datapath: src/datapath/*.ts (AssemblyScript) -> dist/src/datapath/datapath.wasm. Run by tools/build, after
 * tsc. Compiles nothing when the module is newer than everything it is made of.
 *
 * 1. Writes src/datapath/layouts.generated.ts from the tables of src/abi.
 * 2. Checks the sources and, after compiling, the module (R4, R5: tools/check-datapath.ts).
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as abi from '../src/abi/index.ts';
import { checkModule, checkSource } from './check-datapath.ts';
import { compileDatapath } from './compile-datapath.ts';

const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
const sourceDir = join(root, 'src/datapath');
const generated = join(sourceDir, 'layouts.generated.ts');
const output = join(root, 'dist/src/datapath/datapath.wasm');

/** Constants for AssemblyScript: `STRUCT_FIELD` offsets, `STRUCT_size`, and every number that src/abi exports. */
function layoutSource(): string {
  const lines = ['/** Made by tools/build-datapath.ts from the tables of src/abi. */'];
  for (const [name, value] of Object.entries(abi)) {
    if (typeof value === 'number') {
      lines.push(`export const ${name}: u32 = ${value};`);
    } else if (typeof value === 'object' && 'ofs' in value && 'size' in value) {
      lines.push(`export const ${value.name}_size: u32 = ${value.size};`);
      for (const [field, ofs] of Object.entries(value.ofs)) {
        lines.push(`export const ${value.name}_${field}: usize = ${ofs};`);
      }
    }
  }
  return `${lines.join('\n')}\n`;
}

const modified = (file: string): number => (existsSync(file) ? statSync(file).mtimeMs : 0);

const layouts = layoutSource();
if (!existsSync(generated) || readFileSync(generated, 'utf8') !== layouts) writeFileSync(generated, layouts);

const sources = readdirSync(sourceDir)
  .filter((name) => name.endsWith('.ts'))
  .map((name) => join(sourceDir, name));
const tools = ['build-datapath.js', 'compile-datapath.js'].map((name) => join(root, 'dist/tools', name));
const inputs = [...sources, ...tools, join(root, 'package-lock.json')];
if (modified(output) < Math.max(...inputs.map(modified))) {
  const faults = sources.flatMap((file) => checkSource(file, readFileSync(file, 'utf8')));
  if (faults.length > 0) throw new Error(`src/datapath:\n${faults.join('\n')}`);
  mkdirSync(dirname(output), { recursive: true });
  const next = `${output}.new`;
  compileDatapath(join(sourceDir, 'index.ts'), next);
  const bad = checkModule(readFileSync(next));
  if (bad.length > 0) throw new Error(`${output}:\n${bad.join('\n')}`);
  renameSync(next, output);
}
