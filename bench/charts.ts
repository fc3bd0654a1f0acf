/**
 * `npm run charts [-- FILE]`: draws docs/charts/*.svg from a result of `npm run bench` (the newest one): Mpps over packet
 * size, over batch size and over ports. Each chart says what machine and commit it is from.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Row } from './bench.ts';

interface Result {
  readonly date: string;
  readonly commit: string;
  readonly machine: { readonly cpu: string; readonly cpus: number; readonly node: string };
  readonly results: Readonly<Record<string, readonly Row[]>>;
}

interface Line {
  readonly name: string;
  /** x (packet size, batch, ports) and Mpps. */
  readonly points: readonly (readonly [number, number])[];
}

const RESULTS = 'bench/results';
const CHARTS = 'docs/charts';
const WIDTH = 640;
const HEIGHT = 320;
const LEFT = 50;
const TOP = 34;
const BOTTOM = 52;
const RIGHT = 190;
/** Readable on white and on black. */
const COLOURS = ['#2a78c8', '#d9822b', '#3f9c4a', '#b0509c'];

/** A line from the rows of a kind that have the given values, by the column `x`. */
function line(
  name: string,
  rows: readonly Row[] | undefined,
  x: string,
  wanted: Readonly<Record<string, unknown>>,
): Line {
  const chosen = (rows ?? []).filter((row) => Object.entries(wanted).every(([key, value]) => row[key] === value));
  const points = chosen.map((row) => [Number(row[x]), Number(row['mpps'])] as const);
  return { name, points: points.toSorted(([a], [b]) => a - b) };
}

/** A step of 1, 2 or 5 times a power of ten, so that there are about five up to `most`. */
function step(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most / 5));
  return [1, 2, 5, 10].map((n) => n * power).find((s) => most / s <= 6)!;
}

/** One chart; x is drawn in equal steps, for its values double or more from one to the next. */
function chart(title: string, xTitle: string, source: string, lines: readonly Line[]): string {
  const xs = [...new Set(lines.flatMap((l) => l.points.map(([x]) => x)))].toSorted((a, b) => a - b);
  const most = Math.max(1, ...lines.flatMap((l) => l.points.map(([, y]) => y)));
  const right = WIDTH - RIGHT;
  const bottom = HEIGHT - BOTTOM;
  const px = (x: number): number => LEFT + 20 + (xs.indexOf(x) * (right - LEFT - 40)) / Math.max(1, xs.length - 1);
  const py = (y: number): number => bottom - (y / most) * (bottom - TOP);
  const text = (x: number, y: number, what: string, anchor = 'middle', more = ''): string =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"${more}>${what}</text>`;
  const parts = [text(LEFT, 20, `${title}, Mpps`, 'start', ' font-size="14" font-weight="bold"')];
  for (let y = 0; y <= most; y += step(most)) {
    parts.push(`<path d="M${LEFT} ${py(y).toFixed(1)}H${right}" stroke="#888" stroke-opacity=".35"/>`);
    parts.push(text(LEFT - 6, py(y) + 4, String(Number(y.toPrecision(3))), 'end'));
  }
  for (const x of xs) parts.push(text(px(x), bottom + 16, String(x)));
  parts.push(text((LEFT + right) / 2, bottom + 32, xTitle));
  parts.push(text(LEFT, HEIGHT - 6, source, 'start', ' font-size="10"'));
  for (const [i, l] of lines.entries()) {
    const colour = COLOURS[i % COLOURS.length]!;
    const path = l.points.map(([x, y]) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join('L');
    parts.push(`<path d="M${path}" fill="none" stroke="${colour}" stroke-width="2"/>`);
    for (const [x, y] of l.points)
      parts.push(`<circle cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="3" fill="${colour}"/>`);
    parts.push(text(right + 12, TOP + 14 + 18 * i, l.name, 'start', ` fill="${colour}"`));
  }
  const font = 'font-family="sans-serif" font-size="12" fill="#808080"';
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" ${font}>\n${parts.join('\n')}\n</svg>\n`;
}

function newest(): string {
  const files = readdirSync(RESULTS).filter((name) => name.endsWith('.json'));
  const last = files.toSorted().at(-1);
  if (last === undefined) throw new Error(`no results in ${RESULTS}: run "npm run bench" first`);
  return join(RESULTS, last);
}

const file = process.argv[2] ?? newest();
const { date, commit, machine, results } = JSON.parse(readFileSync(file, 'utf8')) as Result;
const source = `${machine.cpu}, ${machine.cpus} CPUs, Node ${machine.node}, ${commit}, ${date.slice(0, 10)}`;
const charts: Readonly<Record<string, string>> = {
  size: chart('Two guests, by packet size', 'bytes of a packet (rings of 4096 slots)', source, [
    line('VALE', results['guests'], 'size', { bench: 'guests', through: 'VALE', slots: 4096, batch: 1024 }),
    line('pipe', results['guests'], 'size', { bench: 'guests', through: 'pipe', slots: 4096, batch: 1024 }),
  ]),
  batch: chart('The datapath alone, by batch', 'packets a turn', source, [
    line('VALE, 60 bytes, 1 address', results['datapath'], 'batch', { bench: 'datapath', size: 60, addresses: 1 }),
    line('VALE, 60 bytes, 256', results['datapath'], 'batch', { bench: 'datapath', size: 60, addresses: 256 }),
    line('VALE, 1514 bytes, 256', results['datapath'], 'batch', { bench: 'datapath', size: 1514, addresses: 256 }),
    line('pipe', results['datapath'], 'batch', { bench: 'datapath of a pipe' }),
  ]),
  ports: chart('A switch, by ports', 'ports (datapath alone, 60 bytes, batches of 64)', source, [
    line('traffic on two', results['growth'], 'ports', { bench: 'ports of the datapath', traffic: 'two' }),
    line('traffic on all', results['growth'], 'ports', { bench: 'ports of the datapath', traffic: 'all' }),
  ]),
};
mkdirSync(CHARTS, { recursive: true });
for (const [name, svg] of Object.entries(charts)) {
  if (!svg.includes('<circle')) continue; // that bench was not run
  writeFileSync(join(CHARTS, `${name}.svg`), svg);
  console.log(`${CHARTS}/${name}.svg from ${file}`);
}
