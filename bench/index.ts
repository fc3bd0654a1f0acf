/**
 * `npm run bench [-- [--ms N] [--rounds N] [--wait S] [--only REGEX] [NAME …]]`: measures, prints tables, and writes everything with
 * the machine it was measured on to bench/results/. Without names: everything of ours; `peers` compares with others.
 * It asserts nothing.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Context, Row } from './bench.ts';
import { benchChain } from './chain.ts';
import { benchDatapath } from './datapath.ts';
import { benchGrowth } from './growth.ts';
import { benchGuests } from './guests.ts';
import { benchIdle } from './idle.ts';
import { benchLatency } from './latency.ts';
import { benchMonitors } from './monitors.ts';
import { benchNet } from './net.ts';
import { benchNic } from './nic.ts';
import { benchPeers } from './peers.ts';
import { Quiet } from './quiet.ts';
import { benchSlices } from './slices.ts';

interface Bench {
  run(context: Context): Promise<Row[]>;
  /** How long a figure takes, and how often it is measured, unless the command line says otherwise. */
  readonly ms: number;
  readonly rounds: number;
  /** Not run unless named. */
  readonly onlyByName?: boolean;
}

const benches: Readonly<Record<string, Bench>> = {
  datapath: { run: benchDatapath, ms: 200, rounds: 1 },
  guests: { run: benchGuests, ms: 700, rounds: 1 },
  chain: { run: benchChain, ms: 700, rounds: 1 },
  latency: { run: benchLatency, ms: 2000, rounds: 1 },
  idle: { run: benchIdle, ms: 2000, rounds: 1 },
  growth: { run: benchGrowth, ms: 200, rounds: 1 },
  monitors: { run: benchMonitors, ms: 150, rounds: 10, onlyByName: true },
  net: { run: benchNet, ms: 3000, rounds: 3, onlyByName: true },
  nic: { run: benchNic, ms: 1500, rounds: 3, onlyByName: true },
  peers: { run: benchPeers, ms: 1500, rounds: 3, onlyByName: true },
  slices: { run: benchSlices, ms: 100, rounds: 20, onlyByName: true },
};

function commit(): string {
  try {
    const head = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
    return execFileSync('git', ['status', '--porcelain'], { encoding: 'utf8' }) === '' ? head : `${head}+`;
  } catch {
    return 'unknown';
  }
}

/** A row for the table: without its kind and without lists, numbers as people read them. */
const rounded = (row: Row): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(row)
      .filter(([key, v]) => key !== 'bench' && !Array.isArray(v))
      .map(([key, v]) => [key, typeof v === 'number' && !Number.isInteger(v) ? Number(v.toPrecision(4)) : v]),
  );

const HELP = `npm run bench [-- [OPTIONS] [NAME ...]]

Measures, prints tables, and writes them to bench/results/ (docs/performance.md).
NAME  what: ${Object.keys(benches).join(', ')};
      without any: ${Object.keys(benches)
        .filter((name) => benches[name]!.onlyByName !== true)
        .join(', ')}

  --ms N        time of a figure, ms
  --rounds N    how often each figure is measured; the median counts
  --wait S      seconds that may be spent waiting for a quiet machine, in all (60)
  --only REGEX  figures of peers, nic and slices, by what they are called and their size
  -h, --help    this text`;

function positive(name: string, text: string | undefined, least: number): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (value >= least) return value;
  throw new Error(`--${name} ${text}: must be a number, at least ${least}`);
}

async function main(args: readonly string[]): Promise<void> {
  const text = { type: 'string' } as const;
  const { values, positionals } = parseArgs({
    args: [...args],
    options: { ms: text, rounds: text, wait: text, only: text, help: { type: 'boolean', short: 'h' } },
    allowPositionals: true,
  });
  if (values.help === true) {
    console.log(HELP);
    return;
  }
  const ms = positive('ms', values.ms, 1);
  const rounds = positive('rounds', values.rounds, 1);
  const waitSeconds = positive('wait', values.wait, 0) ?? 60;
  const only = new RegExp(values.only ?? '');
  const unknown = positionals.find((n) => !(n in benches));
  if (unknown !== undefined) throw new Error(`no bench "${unknown}"; there are: ${Object.keys(benches).join(', ')}`);
  const all = Object.keys(benches).filter((name) => benches[name]!.onlyByName !== true);
  const chosen = positionals.length === 0 ? all : positionals;

  const date = new Date().toISOString();
  const machine = {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: availableParallelism(),
    kernel: release(),
    node: process.version,
  };
  console.log(`${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, Node ${machine.node}, ${commit()}`);
  console.log(
    'probeNs: round trip between two cores before the measurement; othersCpus: CPUs that others kept busy then',
  );
  const quiet = new Quiet(waitSeconds * 1000);
  const results: Record<string, readonly Row[]> = {};
  try {
    for (const name of chosen) {
      const bench = benches[name]!;
      console.log(`\n${name}`);
      const rows = await bench.run({
        quiet,
        ms: ms ?? bench.ms,
        rounds: rounds ?? bench.rounds,
        only,
        progress: (what) => {
          if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${what}\r`);
        },
      });
      results[name] = rows;
      // A table for each kind of row.
      for (const kind of new Set(rows.map((r) => r.bench))) {
        console.table(rows.filter((r) => r.bench === kind).map(rounded));
      }
    }
  } finally {
    quiet.close();
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
