// e2e/real-guest: runs a guest image that contains an unmodified kernel driver against the daemon. See e2e/README.md.

import { execFileSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { root } from '../ptnet.ts';
import { type Image, Lab } from './lab.ts';
import { type Part, parts, type Step } from './steps.ts';

const HELP = `Usage: e2e/real-guest --kernel FILE --initrd FILE | --disk IMAGE  [options]

Runs a guest that contains an unmodified kernel driver for ptnet, and pkt-gen, against the daemon of this checkout.
Prints a line for each step: ok or FAIL, seconds, what was measured. Exit status: 0 all passed, 1 not, 2 wrong usage.

  --kernel FILE, --initrd FILE   a Linux guest
  --disk IMAGE                   any guest, booting from a disk (what it writes is forgotten)
  --qemu FILE                    default: what tools/get-qemu gives
  --memory MIB                   of each machine (default 512)
  --only STEP[,STEP…]            these steps, or those of a group (q35-2cpu-bar32)
  --skip STEP[,STEP…]            not these
  --list                         the steps and what they do
  --json FILE                    also write the result as JSON
  --log FOLDER                   keep what the machines print on their consoles

What the image has to do (the whole contract is in e2e/README.md). On the first serial port it prints "@@ready", then reads lines;
each one is a POSIX shell's, run on its own, and followed by "@@rc=N". Commands it provides:

  guest-load [on|off]             load the driver, if it is not; on, off: whether it asks for a header (PTNETMAP_F_VNET_HDR)
  guest-unload                    unload it
  guest-interfaces                print the names of the ptnet interfaces, in the order of their PCI addresses
  guest-up IF [ADDRESS/BITS]      bring an interface up, with that address and no other
  guest-down IF                   bring it down
  guest-ping ADDRESS COUNT        ping(8)
  guest-tcp-receive PORT          accept one connection, read it to its end, print the MD5 of what came
  guest-tcp-send ADDRESS PORT N   print the MD5 of N random bytes and send them over TCP
  guest-pkt-gen …, guest-bridge … netmap's own programs (exec: they get signals)
  guest-reboot                    reboot at once
  guest-lacks                     optional: print the names of steps that this image cannot do
`;

interface Result {
  readonly step: string;
  readonly what: string;
  readonly result: 'ok' | 'FAIL' | 'lacks';
  readonly seconds: number;
  readonly detail: string;
}

function fail(text: string): never {
  process.stderr.write(`e2e/real-guest: ${text}\n`);
  process.exit(2);
}

function options(): { image: Image; chosen: Part[]; json: string | undefined } {
  let values: Record<string, string | boolean | undefined>;
  try {
    const text = { type: 'string' } as const;
    const flag = { type: 'boolean' } as const;
    const known = {
      kernel: text,
      initrd: text,
      disk: text,
      qemu: text,
      memory: text,
      only: text,
      skip: text,
      json: text,
    };
    ({ values } = parseArgs({ options: { ...known, log: text, list: flag, help: flag } }));
  } catch (e) {
    return fail(e instanceof Error ? e.message : String(e));
  }
  if (values['help'] === true) {
    process.stdout.write(HELP);
    process.exit(0);
  }
  if (values['list'] === true) {
    for (const { name, what } of parts.flatMap((p) => p.steps)) process.stdout.write(`${name.padEnd(28)} ${what}\n`);
    process.exit(0);
  }
  const text = (name: string): string | undefined => values[name] as string | undefined;
  const [kernel, initrd, disk] = [text('kernel'), text('initrd'), text('disk')];
  if (disk === undefined ? kernel === undefined || initrd === undefined : kernel !== undefined) {
    fail('give --kernel and --initrd, or --disk (see --help)');
  }
  for (const file of [kernel, initrd, disk]) if (file !== undefined && !existsSync(file)) fail(`no file ${file}`);
  const memoryMiB = Number(text('memory') ?? 512);
  if (!Number.isInteger(memoryMiB) || memoryMiB < 64) fail('--memory: a number of MiB, 64 or more');
  const logFolder = text('log');
  return {
    image: {
      qemu: text('qemu') ?? execFileSync(join(root, 'tools/get-qemu'), { encoding: 'utf8' }).trim(),
      ...(kernel === undefined ? {} : { kernel }),
      ...(initrd === undefined ? {} : { initrd }),
      ...(disk === undefined ? {} : { disk }),
      ...(logFolder === undefined ? {} : { logFolder }),
      memoryMiB,
    },
    chosen: choose(text('only'), text('skip')),
    json: text('json'),
  };
}

/** The parts with the chosen steps, without parts in which nothing was chosen. */
function choose(only: string | undefined, skip: string | undefined): Part[] {
  const all = parts.flatMap((p) => p.steps.map((s) => s.name));
  const names = (list: string | undefined): string[] => list?.split(',').filter(Boolean) ?? [];
  const matches = (step: string, name: string): boolean => step === name || step.startsWith(`${name}/`);
  for (const name of [...names(only), ...names(skip)]) {
    if (!all.some((step) => matches(step, name))) fail(`no step ${name} (see --list)`);
  }
  const wanted = (step: Step): boolean =>
    (only === undefined || names(only).some((name) => matches(step.name, name))) &&
    !names(skip).some((name) => matches(step.name, name));
  return parts.map((p) => ({ ...p, steps: p.steps.filter(wanted) })).filter((p) => p.steps.length > 0);
}

const secondsSince = (begin: number): number => Math.round((Date.now() - begin) / 100) / 10;

async function runStep(step: Step, lab: Lab, lacks: ReadonlySet<string>): Promise<Result> {
  const { name, what } = step;
  const base = name.replace(/^.*\//, '');
  if (lacks.has(base)) return { step: name, what, result: 'lacks', seconds: 0, detail: 'the image says it cannot' };
  const begin = Date.now();
  try {
    const detail = await step.run(lab);
    return { step: name, what, result: 'ok', seconds: secondsSince(begin), detail };
  } catch (e) {
    const detail = e instanceof Error ? e.message : String(e);
    // The next step finds no trace of this one.
    await lab.dropAll();
    return { step: name, what, result: 'FAIL', seconds: secondsSince(begin), detail };
  }
}

async function runPart(part: Part, image: Image, lacks: Set<string>): Promise<Result[]> {
  const lab = new Lab(image, part.setup);
  const results: Result[] = [];
  try {
    await lab.start();
    for (const step of part.steps) {
      const result = await runStep(step, lab, lacks);
      results.push(result);
      const detail = result.result === 'FAIL' ? `\n${result.detail.replaceAll(/^/gm, '    ')}` : result.detail;
      process.stdout.write(
        `${result.result.padEnd(5)} ${step.name.padEnd(28)} ${result.seconds.toFixed(1).padStart(6)} s  ${detail}\n`,
      );
    }
  } finally {
    const { stderr } = lab.daemon;
    await lab.close();
    if (results.some((r) => r.result === 'FAIL')) {
      process.stdout.write(`--- the daemon's log ---\n${stderr.split('\n').slice(-40).join('\n')}\n`);
    }
  }
  return results;
}

/** Asks the image, once, what it cannot do. */
async function askLacks(image: Image): Promise<Set<string>> {
  const lab = new Lab(image, parts[0]!.setup);
  try {
    await lab.start();
    const { rc, output } = await (await lab.vm('a')).machine.run('guest-lacks 2>/dev/null');
    return new Set(rc === 0 ? output.split(/\s+/).filter(Boolean) : []);
  } finally {
    await lab.close();
  }
}

async function main(): Promise<number> {
  const { image, chosen, json } = options();
  const begin = Date.now();
  const lacks = await askLacks(image);
  const results: Result[] = [];
  for (const part of chosen) results.push(...(await runPart(part, image, lacks)));
  const count = (result: Result['result']): number => results.filter((r) => r.result === result).length;
  const [passed, failed, lacking] = [count('ok'), count('FAIL'), count('lacks')];
  const seconds = secondsSince(begin);
  process.stdout.write(`${passed} ok, ${failed} failed, ${lacking} not possible with this image, ${seconds} s\n`);
  if (json !== undefined) {
    writeFileSync(json, `${JSON.stringify({ passed, failed, lacking, seconds, steps: results }, null, 2)}\n`);
  }
  return failed === 0 ? 0 : 1;
}

// Interrupted: machines and daemon end with this process.
for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  process.on(signal, () => process.exit(status));
process.exit(await main());
