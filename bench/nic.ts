/**
 * An interface as a port: millions of frames a second that pkt-gen receives from, and sends to, one end of a veth pair
 * through our daemon, and in the same run what the kernel reaches alone: an XDP program that drops everything, which is the
 * limit of receiving, and packet sockets (bench/c/packet.c), which are the peer. The frames that are received are made by the
 * kernel (bench/nic-kernel.ts) at the other end, more than anybody takes. Needs root; namespaces and interfaces go with the
 * run. Asserts nothing.
 */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Namespace } from '../tests/nic/nic-lab.ts';
import { NicLab, nicSkip } from '../tests/nic/nic-lab.ts';
import type { Context, Row, Variant } from './bench.ts';
import { conditions, interleave, ratio, WARM_MS } from './bench.ts';
import { compilePrograms, programPath } from './programs.ts';

const kernel = fileURLToPath(new URL('nic-kernel.js', import.meta.url));
/** Bytes of a frame, without CRC. */
const SIZES = [60, 1514];
const SLOTS = '4096';
const DROP = 'kernel: XDP_DROP';
const PACKET = 'kernel: packet sockets';
/** Our ways of having a veth's frames: generic means by way of a bridge, which has no XDP of its own. */
const WAYS = ['native', 'generic', 'packet'] as const;
type Mode = (typeof WAYS)[number];
const ptnet = (mode: Mode): string => `ptnet, ${mode}`;

/** What runs during one measurement, and ends with it. */
class Running {
  readonly #children: ChildProcess[] = [];

  /** Kills it at the end, if it has not ended. */
  add(child: ChildProcess): ChildProcess {
    this.#children.push(child);
    return child;
  }

  /** Waits until a program says "ready". */
  async start(child: ChildProcess): Promise<ChildProcess> {
    this.add(child);
    let errors = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (errors += text));
    const ended = once(child, 'exit').then(() => {
      throw new Error(`${child.spawnargs.slice(4).join(' ')} ended: ${errors}`);
    });
    await Promise.race([once(child.stdout!, 'data'), ended]);
    ended.catch(() => undefined);
    return child;
  }

  /** Starts nic-kernel. */
  kernel(ns: Namespace, ...args: string[]): Promise<ChildProcess> {
    return this.start(ns.spawn(process.execPath, kernel, ...args));
  }

  async end(): Promise<void> {
    for (const child of this.#children.splice(0).toReversed()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const exit = once(child, 'exit');
      child.kill('SIGKILL');
      await exit;
    }
  }
}

/** Frames that an interface has received so far. */
function received(ns: Namespace, iface: string): number {
  const [link] = JSON.parse(ns.ip('-j', '-s', 'link', 'show', iface)) as [{ stats64: { rx: { packets: number } } }];
  return link.stats64.rx.packets;
}

/** Millions of frames a second that an interface receives. */
function arriving(ns: Namespace, iface: string, ms: number): Promise<number> {
  return growing(() => received(ns, iface), ms);
}

/** Millions a second by which a count grows. */
async function growing(count: () => number | Promise<number>, ms: number): Promise<number> {
  await sleep(WARM_MS);
  const [before, begin] = [await count(), performance.now()];
  await sleep(ms);
  return ((await count()) - before) / (performance.now() - begin) / 1000;
}

/** pkt-gen on our port. @throws Error: it has the interface in another way than it should */
async function pktGen(
  running: Running,
  [lab, iface]: [NicLab, string],
  mode: Mode,
  ...args: string[]
): Promise<() => Promise<void>> {
  const port = `netmap:${iface}`;
  const options = ['--run-dir', lab.runDir, '--json', '-i', port, '-C', SLOTS];
  const child = running.add(lab.here.ptnet('pkt-gen', ...options, ...args));
  let errors = '';
  child.stdout!.resume();
  child.stderr!.setEncoding('utf8').on('data', (t: string) => (errors += t));
  const closed = once(child, 'close');
  const end = async (): Promise<void> => {
    child.kill('SIGINT');
    await closed;
    while ((await lab.ports()).length > 0) await sleep(10);
    if (child.exitCode !== 0) throw new Error(`pkt-gen: ${errors}`);
  };
  while (child.exitCode === null) {
    const found = (await lab.ports()).find((p) => p.name === port && p.running);
    if (found === undefined) {
      await sleep(20);
      continue;
    }
    const is = found.interface?.mode;
    if (is === mode) return end;
    await end();
    throw new Error(`${port} is ${is}: ${found.interface?.because}`);
  }
  throw new Error(`pkt-gen: ${errors}`);
}

function variants(lab: NicLab, c: boolean, side: 'receive' | 'send', size: number, ms: number): Variant[] {
  const variant = (name: string, measure: (running: Running) => Promise<number>, iface = 'veth0'): Variant => ({
    name,
    run: async () => {
      const running = new Running();
      if (iface === 'br0') lab.bridge();
      try {
        return await measure(running);
      } finally {
        await running.end();
        if (iface === 'br0') lab.here.ip('link', 'del', 'br0');
      }
    },
  });
  const source = (running: Running): Promise<ChildProcess> => running.kernel(lab.there, 'send', 'veth1', String(size));

  const ours = WAYS.map((mode) => {
    const iface = mode === 'generic' ? 'br0' : 'veth0';
    const port: [NicLab, string] = [lab, iface];
    const measure = async (running: Running): Promise<number> => {
      // A packet socket is what is left where another XDP program is; and veth0 takes the source's frames only if it has one.
      if (mode !== 'native') await running.kernel(lab.here, 'pass', 'veth0');
      if (side === 'send') {
        const end = await pktGen(running, port, mode, '-f', 'tx', '-l', String(size), '-D', '02:00:00:00:00:02');
        const mpps = await arriving(lab.there, 'veth1', ms);
        await end();
        return mpps;
      }
      const end = await pktGen(running, port, mode, '-f', 'rx');
      await source(running);
      const mpps = await growing(async () => {
        const found = (await lab.ports()).find((p) => p.name === `netmap:${iface}`);
        return found!.rxRings.reduce((n, { packets }) => n + packets, 0);
      }, ms);
      await end();
      return mpps;
    };
    return variant(ptnet(mode), measure, iface);
  });
  const drop = variant(DROP, async (running) => {
    await running.kernel(lab.here, 'drop', 'veth0');
    await source(running);
    return arriving(lab.here, 'veth0', ms);
  });
  const sockets = variant(PACKET, async (running) => {
    if (side === 'send') {
      await running.start(lab.here.spawn(programPath('packet'), 'send', 'veth0', String(size)));
      return arriving(lab.there, 'veth1', ms);
    }
    await running.kernel(lab.here, 'pass', 'veth0');
    const child = await running.start(lab.here.spawn(programPath('packet'), 'receive', 'veth0', String(ms)));
    await source(running);
    const [figure] = (await once(child.stdout!, 'data')) as [Buffer];
    return Number(figure.toString());
  });
  return [...(side === 'receive' ? [drop] : []), ...(c ? [sockets] : []), ...ours];
}

export async function benchNic(context: Context): Promise<Row[]> {
  const missing = nicSkip();
  if (missing !== false) {
    console.log(`not measured: ${missing}`);
    return [];
  }
  const compiled = compilePrograms();
  if (typeof compiled === 'string') console.log(`${PACKET}: left out: ${compiled}`);
  const lab = new NicLab();
  const interrupted = (): void => void lab.close().finally(() => process.exit(1));
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    await lab.start();
    const rows: Row[] = [];
    for (const side of ['receive', 'send'] as const) {
      for (const size of SIZES) {
        const what = `${side}, ${size} bytes`;
        const all = variants(lab, typeof compiled !== 'string', side, size, context.ms);
        const figures = await interleave(
          context,
          all.filter(({ name }) => context.only.test(`${what}, ${name}`)),
        );
        for (const figure of figures) {
          const to = (name: string): number =>
            ratio(
              figure,
              figures.find((f) => f.name === name),
            );
          rows.push({
            bench: 'nic',
            what,
            by: figure.name,
            mpps: figure.value,
            ...(side === 'receive' ? { toDrop: to(DROP) } : {}),
            toPacket: to(PACKET),
            rounds: figure.rounds,
            ...conditions(figure.conditions),
            ...(figure.error === undefined ? {} : { error: figure.error }),
          });
        }
      }
    }
    return rows;
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
    await lab.close();
  }
}
