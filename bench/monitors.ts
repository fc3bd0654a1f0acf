/**
 * What monitors cost a port that has none: the datapath as it is, against one compiled without its looks for monitors, in
 * processes of their own, in turn. Millions of packets per second, as bench/datapath.ts measures them.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { compileDatapath } from '../tools/compile-datapath.ts';
import type { Context, Row } from './bench.ts';
import { conditions, type Figure, interleave } from './bench.ts';

/** How the datapath asks whether there is a monitor. */
const LOOKS = [/load<u(?:32|64)>\(\w+, kring_z?mon\) != 0/g, /load<u32>\(d, domain_num_monitor_rings\) != 0/g];
/** Looks there are at least: fewer, and this bench measures nothing. */
const LEAST = 10;

/** A copy of dist/ in `dir` whose datapath never looks for monitors. */
export function withoutMonitors(dir: string): string {
  const dist = join(dir, 'dist');
  const sources = join(dir, 'datapath');
  cpSync('dist', dist, { recursive: true });
  symlinkSync(resolve('node_modules'), join(dir, 'node_modules'));
  cpSync('package.json', join(dir, 'package.json'));
  cpSync('src/datapath', sources, { recursive: true });
  let looks = 0;
  for (const file of readdirSync(sources).filter((name) => name.endsWith('.ts') && name !== 'monitor.ts')) {
    let text = readFileSync(join(sources, file), 'utf8');
    for (const look of LOOKS) {
      text = text.replaceAll(look, () => {
        looks += 1;
        return 'false';
      });
    }
    writeFileSync(join(sources, file), text);
  }
  if (looks < LEAST) throw new Error(`the datapath looks for monitors in ${looks} places only: mend bench/monitors.ts`);
  compileDatapath(join(sources, 'index.ts'), join(dist, 'src/datapath/datapath.wasm'));
  return dist;
}

/** The best of the rounds: whatever disturbs a loop makes it slower. */
const best = ({ rounds }: Figure): number => Math.max(...rounds);

const CASES = [
  ['VALE', 'measureDatapath', [60, 256, 1024, 256]],
  ['VALE', 'measureDatapath', [60, 1, 1024, 16]],
  ['VALE', 'measureDatapath', [60, 1, 1024, 1]],
  ['pipe', 'measurePipe', [60, 1024, 256]],
  ['pipe', 'measurePipe', [60, 1024, 1]],
] as const;

export async function benchMonitors(context: Context): Promise<Row[]> {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-monitors-'));
  try {
    const dists = { with: resolve('dist'), without: withoutMonitors(dir) };
    const rows: Row[] = [];
    for (const [what, measure, args] of CASES) {
      const run = (dist: string): number => {
        const script = `import { ${measure} } from ${JSON.stringify(join(dist, 'bench/datapath.js'))};
          console.log(${measure}(${[...args, context.ms].join(', ')}));`;
        return Number(execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }));
      };
      // Twice with: what two measurements of the same differ by.
      const [here, bare, again] = await interleave(context, [
        { name: `${what}, with monitors' code`, run: () => run(dists.with) },
        { name: `${what}, without`, run: () => run(dists.without) },
        { name: `${what}, with it again`, run: () => run(dists.with) },
      ]);
      rows.push({
        bench: 'monitors',
        ports: what,
        size: args[0],
        addresses: what === 'VALE' ? args[1] : 0,
        batch: args.at(-1)!,
        with: best(here!),
        without: best(bare!),
        withAgain: best(again!),
        ...conditions([...here!.conditions, ...bare!.conditions]),
      });
    }
    return rows;
  } finally {
    rmSync(dir, { recursive: true });
  }
}
