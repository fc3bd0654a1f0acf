/**
 * `npm run bench -- peers`: ptnet beside what else moves packets between two processes on this machine, and beside the
 * limits of C, all in one run and interleaved; then the ratios that are our goals. What is not installed is left out, with
 * its reason.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lab } from '../src/cli/lab.ts';
import { hugePages, usableCpus } from '../src/os/index.ts';
import type { Context, Figure, Row, Variant } from './bench.ts';
import { conditions, interleave, ratio } from './bench.ts';
import { measureDatapath, measurePipe } from './datapath.ts';
import { dpdkPair, memifRoundTrip } from './dpdk.ts';
import { PIPE_RX, PIPE_TX, RX, stream, TX } from './guests.ts';
import { REST_RATE, roundTrips } from './latency.ts';
import { program } from './process.ts';
import { compilePrograms } from './programs.ts';

/** Bytes of a packet, without CRC. */
const SIZES = [64, 1500];
/** Slots of the rings of two guests through VALE. */
export const SLOTS = [4096, 2048, 1024];
/** Huge pages of 2 MiB that both regions need at most. */
const HUGE_PAGES = 40;
/** Ratios that are wanted: of a figure by another one, and the goal. */
export const GOALS: readonly {
  readonly size: number;
  readonly of: string;
  readonly by: string;
  readonly goal: number;
}[] = [
  { size: 64, of: 'datapath, VALE', by: 'C: VALE, 1 thread', goal: 1 },
  { size: 64, of: 'datapath, VALE', by: 'C: VALE, 1 thread, 16-byte registers', goal: 1 },
  { size: 1500, of: 'datapath, VALE', by: 'C: memcpy, 1 thread', goal: 0.95 },
  { size: 1500, of: 'datapath, VALE', by: 'C: VALE, 1 thread', goal: 1 },
  { size: 64, of: 'datapath, pipe', by: 'C: swap, 1 thread', goal: 0.8 },
  { size: 64, of: 'guests, VALE, 4096 slots', by: 'DPDK memif', goal: 0.9 },
  { size: 1500, of: 'guests, VALE, 4096 slots', by: 'C: memcpy, 2 processes', goal: 0.85 },
  { size: 64, of: 'guests, VALE, 1024 slots', by: 'DPDK memif', goal: 0.45 },
  { size: 1500, of: 'guests, VALE, 2048 slots', by: 'C: memcpy, 2 processes', goal: 0.85 },
  { size: 1500, of: 'guests, VALE, 1024 slots', by: 'C: memcpy, 2 processes', goal: 0.425 },
  { size: 1500, of: 'guests placed, VALE, 4096 slots', by: 'C: memcpy, 2 processes', goal: 0.85 },
  { size: 1500, of: 'guests placed, VALE, 2048 slots', by: 'C: memcpy, 2 processes', goal: 0.85 },
  { size: 1500, of: 'guests placed, VALE, 1024 slots', by: 'C: memcpy, 2 processes', goal: 0.425 },
  { size: 1500, of: 'guests placed, VALE, 1024 slots', by: 'C: VALE, 3 processes, placed, 16-byte registers', goal: 1 },
  { size: 1500, of: 'guests placed, huge pages, VALE, 4096 slots', by: 'C: memcpy, 2 processes', goal: 0.85 },
  { size: 1500, of: 'guests placed, huge pages, VALE, 2048 slots', by: 'C: memcpy, 2 processes', goal: 0.85 },
  { size: 1500, of: 'guests placed, huge pages, VALE, 1024 slots', by: 'C: memcpy, 2 processes', goal: 0.425 },
  { size: 64, of: 'guests, pipe, 4096 slots', by: 'DPDK memif', goal: 1.7 },
  { size: 1500, of: 'guests, pipe, 4096 slots', by: 'DPDK memif', goal: 4 },
];

export async function benchPeers(context: Context): Promise<Row[]> {
  const { ms } = context;
  const c = compilePrograms();
  const testpmd = program('dpdk-testpmd');
  const isRoot = process.getuid?.() === 0;
  const missing: Row[] = [];
  const without = (what: string, why: string): void => void missing.push({ bench: 'left out', what, why });
  if (typeof c === 'string') without('C', c);
  if (testpmd === undefined) without('DPDK', 'dpdk-testpmd is not on PATH (Debian: package dpdk-dev)');
  const tap = typeof c !== 'string' && isRoot && existsSync('/dev/net/tun');
  if (!tap) without('TAP + bridge', 'needs a C compiler, root and /dev/net/tun');
  const vdeSwitch = typeof c === 'string' ? undefined : program('vde_switch');
  if (vdeSwitch === undefined)
    without('vde_switch', 'vde_switch or a C compiler is not on PATH (Debian: package vde2)');

  const lab = await Lab.start();
  // The datapath thread has one CPU for itself, both guests share another one.
  const [datapathCpu, guestsCpu] = usableCpus();
  const placed = guestsCpu === undefined ? undefined : await Lab.start(['--cpus', `${datapathCpu}`]);
  if (placed === undefined) without('guests placed', 'there is one CPU only');
  const { free } = hugePages();
  const huge = placed === undefined || free < HUGE_PAGES ? undefined : await onHugePages(datapathCpu!);
  if (huge === undefined)
    without('guests placed, huge pages', `needs two CPUs, and ${HUGE_PAGES} huge pages (${free} are free)`);
  const vde = vdeSwitch === undefined ? undefined : new VdeSwitch(vdeSwitch);
  try {
    const rows: Row[] = [];
    const bySize = new Map<number, Figure[]>();
    for (const size of SIZES) {
      const variants: Variant[] = [
        { name: 'datapath, VALE', run: () => measureDatapath(size, 256, 1024, 256, ms / 4) },
        ...SLOTS.map((slots) => ({
          name: `guests, VALE, ${slots} slots`,
          run: async () => (await stream(lab, { tx: TX, rx: RX, size, slots, batch: slots / 4 }, ms)).mpps,
        })),
        ...[
          { name: 'guests placed', on: placed },
          { name: 'guests placed, huge pages', on: huge },
        ].flatMap(({ name, on }) =>
          (on === undefined ? [] : SLOTS).map((slots) => ({
            name: `${name}, VALE, ${slots} slots`,
            run: async () =>
              (await stream(on!, { tx: TX, rx: RX, size, slots, batch: slots / 4, cpu: guestsCpu! }, ms)).mpps,
          })),
        ),
        { name: 'datapath, pipe', run: () => measurePipe(size, 1024, 256, ms / 4) },
        {
          name: 'guests, pipe, 4096 slots',
          run: async () => (await stream(lab, { tx: PIPE_TX, rx: PIPE_RX, size, slots: 4096, batch: 1024 }, ms)).mpps,
        },
      ];
      if (typeof c !== 'string') {
        const rings =
          (how: string, processes: number, slots: number, name = 'rings') =>
          async (): Promise<number> =>
            (await c(name, [how, processes, size, slots, 256, 256, ms / 4]))[0]!;
        variants.push(
          { name: 'C: VALE, 1 thread', run: rings('vale', 1, 1024) },
          { name: 'C: VALE, 1 thread, 16-byte registers', run: rings('vale', 1, 1024, 'rings16') },
          { name: 'C: memcpy, 1 thread', run: rings('copy', 1, 1024) },
          { name: 'C: swap, 1 thread', run: rings('swap', 1, 1024) },
          { name: 'C: memcpy, 2 processes', run: rings('copy', 2, 1024) },
          { name: 'C: memcpy, 2 processes, 4096 slots', run: rings('copy', 2, 4096) },
          { name: 'C: VALE, 3 processes, placed, 16-byte registers', run: rings('vale', 3, 1024, 'rings16') },
          { name: 'C: swap, 2 processes', run: rings('swap', 2, 1024) },
        );
        if (tap) variants.push({ name: 'TAP + bridge', run: async () => (await c('peers', ['tap', size, ms]))[0]! });
        if (vde !== undefined) {
          variants.push({ name: 'vde_switch', run: async () => (await c('peers', ['vde', vde.dir, size, ms]))[0]! });
        }
      }
      if (testpmd !== undefined) {
        variants.push(
          { name: 'DPDK memif', run: () => dpdkPair(testpmd, 'memif', size, 2048, ms) },
          { name: 'DPDK vhost', run: () => dpdkPair(testpmd, 'vhost', size, 1024, ms) },
        );
      }
      const wanted = variants.filter(({ name }) => context.only.test(`${name}, ${size} bytes`));
      const figures = await interleave(context, wanted);
      bySize.set(size, figures);
      for (const f of figures) {
        rows.push({ bench: 'peers', size, what: f.name, mpps: f.value, rounds: f.rounds, ...conditions(f.conditions) });
        if (f.error !== undefined) without(`${f.name}, ${size} bytes`, f.error);
      }
    }
    for (const { size, of, by, goal } of GOALS) {
      const figure = (name: string): Figure | undefined => bySize.get(size)?.find((f) => f.name === name);
      if (figure(of) === undefined || figure(by) === undefined) continue;
      rows.push({ bench: 'ratios', size, of, by, ratio: ratio(figure(of), figure(by)), goal });
    }
    rows.push(...(await latency(context, lab, c, testpmd)));
    return [...rows, ...missing];
  } finally {
    vde?.close();
    await lab.stop();
    await placed?.stop();
    await huge?.stop();
  }
}

/** A daemon whose regions lie on huge pages, its datapath thread on a CPU. */
async function onHugePages(cpu: number): Promise<Lab> {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-bench-'));
  try {
    const config = join(dir, 'huge.yaml');
    writeFileSync(config, 'ports: { hugePages: true }\n');
    return await Lab.start(['--cpus', String(cpu), '--config', config]);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** Round trips: guests through VALE, asleep in between or not, beside a UNIX socket and DPDK. */
async function latency(
  context: Context,
  lab: Lab,
  compiled: ReturnType<typeof compilePrograms>,
  testpmd: string | undefined,
): Promise<Row[]> {
  const c = compiled;
  const guests = (args: readonly string[]) => () => roundTrips(lab, args, context.ms);
  const trips: { what: string; run: () => Promise<{ p50Us: number; p99Us?: number; p999Us?: number }> }[] = [
    { what: 'guests, VALE, at rest', run: guests(['-R', String(REST_RATE)]) },
    { what: 'guests, VALE, back to back', run: guests([]) },
  ];
  if (typeof c !== 'string') {
    const socket = (count: number, pauseUs: number) => async () => {
      const [p50Us = Number.NaN, p99Us = Number.NaN, p999Us = Number.NaN] = await c('peers', ['unix', count, pauseUs]);
      return { p50Us, p99Us, p999Us };
    };
    trips.push(
      { what: 'C: UNIX socket, at rest', run: socket(400, 1e6 / REST_RATE) },
      { what: 'C: UNIX socket, back to back', run: socket(20_000, 0) },
    );
  }
  if (testpmd !== undefined) {
    trips.push({
      what: 'DPDK memif, both polling, mean',
      run: async () => ({ p50Us: await memifRoundTrip(testpmd, context.ms) }),
    });
  }
  const rows: Row[] = [];
  for (let round = 0; round < context.rounds; round++) {
    for (const { what, run } of trips) {
      if (!context.only.test(what)) continue;
      context.progress(what);
      const seen = await context.quiet.wait();
      rows.push({ bench: 'round trips', what, ...(await run()), ...conditions([seen]) });
    }
  }
  return rows;
}

/** A running vde_switch; it ends when its standard input does. */
class VdeSwitch {
  readonly dir: string;
  readonly #parent = mkdtempSync(join(tmpdir(), 'ptnet-vde-'));
  readonly #child: ChildProcess;

  constructor(path: string) {
    this.dir = join(this.#parent, 'switch');
    this.#child = spawn(path, ['-s', this.dir], { stdio: ['pipe', 'ignore', 'ignore'] });
  }

  close(): void {
    this.#child.stdin?.end();
    this.#child.kill();
    rmSync(this.#parent, { recursive: true, force: true });
  }
}
