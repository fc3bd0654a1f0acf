/**
 * `npm run bench [-- [--ms N] [datapath | guests …]]`: measures, prints tables, and writes everything with the machine it
 * was measured on to bench/results/. It asserts nothing.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, release } from 'node:os';
import { join } from 'node:path';
import { benchDatapath } from './datapath.ts';
import { benchGuests } from './guests.ts';

/** Each bench: how it is run, and how long a row takes unless --ms says otherwise. */
const benches = {
  datapath: { run: (ms: number) => benchDatapath(ms), ms: 200 },
  guests: { run: (ms: number) => benchGuests(ms), ms: 1000 },
} as const;
type Bench = keyof typeof benches;

function commit(): string {
  try {
    const head = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
    return execFileSync('git', ['status', '--porcelain'], { encoding: 'utf8' }) === '' ? head : `${head}+`;
  } catch {
    return 'unknown';
  }
}

/** A row for the table: without its kind, numbers as people read them. */
const rounded = (row: object): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(row)
      .filter(([key]) => key !== 'bench')
      .map(([key, v]) => [key, typeof v === 'number' && !Number.isInteger(v) ? Number(v.toFixed(3)) : v]),
  );

async function main(args: readonly string[]): Promise<void> {
  const at = args.indexOf('--ms');
  const ms = at >= 0 ? Number(args[at + 1]) : undefined;
  if (ms !== undefined && !(ms > 0)) throw new Error(`--ms ${args[at + 1]}: milliseconds are wanted`);
  const names = args.filter((a, i) => !a.startsWith('--') && (at < 0 || i !== at + 1));
  const unknown = names.find((n) => !(n in benches));
  if (unknown !== undefined) throw new Error(`no bench "${unknown}"; there are: ${Object.keys(benches).join(', ')}`);
  const chosen = names.length === 0 ? (Object.keys(benches) as Bench[]) : (names as Bench[]);

  const date = new Date().toISOString();
  const machine = {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: availableParallelism(),
    kernel: release(),
    node: process.version,
  };
  console.log(`${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, Node ${machine.node}`);
  const results: Partial<Record<Bench, readonly object[]>> = {};
  for (const name of chosen) {
    console.log(`\n${name}`);
    const rows = await benches[name].run(ms ?? benches[name].ms);
    results[name] = rows;
    // A table for each kind of row.
    for (const kind of new Set(rows.map((r) => r.bench))) {
      console.table(rows.filter((r) => r.bench === kind).map(rounded));
    }
  }
  mkdirSync('bench/results', { recursive: true });
  const file = join('bench/results', `${date.replaceAll(':', '-').slice(0, 19)}.json`);
  writeFileSync(file, `${JSON.stringify({ date, commit: commit(), machine, results }, null, 2)}\n`);
  console.log(`\nwritten to ${file}`);
}

try {
  await main(process.argv.slice(2));
} catch (e) {
  console.error(`bench: ${e instanceof Error ? e.message : String(e)}`);
  process.exitCode = 1;
}
