/** R20: every way out of the daemon, with real processes: it always ends, soon, and its guests are told. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { HoldsLab, Process, until, withLab } from './lab.ts';

const INJECT = new URL('../../../tests/holds/inject.mjs', import.meta.url).href;
const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
/** R20's 2 s, and what a busy machine adds. A daemon that does not end by itself does not end then either. */
const END_MS = 60_000;

async function ends(daemon: Process): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
  const late = setTimeout(END_MS, undefined, { ref: false });
  const exit = await Promise.race([daemon.exited, late]);
  assert.ok(exit !== undefined, `the daemon has not ended after ${END_MS / 1000} s`);
  return exit;
}

const states: Readonly<Record<string, (lab: HoldsLab) => Promise<readonly Process[]>>> = {
  'at rest': async () => [],
  'with guests at rest': async (lab) => {
    const guests = [lab.guest('traffic', 'vale0:a')];
    for (const g of guests) await g.line(/^running/);
    return guests;
  },
  'in traffic': async (lab) => {
    const guests = [lab.guest('traffic', 'vale0:a'), lab.guest('traffic', 'vale0:b'), lab.guest('traffic', 'vale0:c')];
    for (const g of guests) await g.line(/^running/);
    return guests;
  },
};

for (const [state, set] of Object.entries(states)) {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    test(`R20: ${signal} ${state}: status 0, sockets removed, guests told`, () =>
      withLab(
        async (lab) => {
          const guests = await set(lab);
          lab.daemon.kill(signal);
          assert.deepEqual(await ends(lab.daemon), { code: 0, signal: null });
          for (const guest of guests) {
            await guest.line(/^gone the daemon of port vale0:[abc] is gone/);
            await guest.success();
          }
          assert.equal(existsSync(join(lab.dir, 'control.sock')), false);
          assert.equal(existsSync(join(lab.dir, 'vm')), false);
          assert.doesNotMatch(lab.daemon.stderr, /"level":(50|60)/, 'nothing went wrong on the way');
        },
        ['--vm', 'fw=vale9:fw'],
      ));
  }
}

test('R20: signals one after the other, and during the start', () =>
  withLab(async (lab) => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGTERM'] as const) lab.daemon.kill(signal);
    assert.equal((await ends(lab.daemon)).code, 0);
    for (let ms = 0; ms < 400; ms += 40) {
      const daemon = new Process([MAIN, 'host', '--run-dir', lab.dir]);
      await setTimeout(ms);
      daemon.kill('SIGTERM');
      const { code, signal } = await ends(daemon);
      // On a slow machine the start may take longer than R20 lets it.
      const late = code === 1 && daemon.stderr.includes('SIGTERM while the daemon was starting, which took too long');
      assert.ok(code === 0 || late || signal === 'SIGTERM', `${ms} ms: ${code} ${signal} ${daemon.stderr}`);
    }
    await lab.restart();
  }));

const faults: readonly (readonly [string, RegExp])[] = [
  ['main:throw', /a fault of ptnet itself/],
  ['main:reject', /a fault of ptnet itself/],
  ['devices:throw', /thread devices: injected into devices/],
  ['devices:reject', /thread devices: injected into devices/],
  ['datapath:throw', /thread datapath 0: injected into datapath/],
];
for (const [fault, says] of faults) {
  test(`R20: ${fault.replace(':', ' thread: ')}: the daemon says what happened and ends with status 1; guests are told`, async () => {
    const file = join('/tmp', `ptnet-fault-${process.pid}-${fault.replace(':', '-')}`);
    const lab = await HoldsLab.start([], {
      NODE_OPTIONS: `--import ${INJECT}`,
      PTNET_FAULT: fault,
      PTNET_FAULT_FILE: file,
    });
    try {
      const guest = lab.guest('traffic', 'vale0:a');
      await guest.line(/^running/);
      writeFileSync(file, '');
      // The datapath fails when mail comes.
      const late = fault.startsWith('datapath') ? lab.guest('traffic', 'vale0:b') : undefined;
      assert.deepEqual(await ends(lab.daemon), { code: 1, signal: null });
      assert.match(lab.daemon.stderr, says);
      assert.doesNotMatch(lab.daemon.stderr, /did not end in time/, 'nobody waits for a thread that is gone');
      await guest.line(/^gone/);
      late?.kill();
    } finally {
      rmSync(file, { force: true });
      await lab.stop();
    }
  });
}

test('R20: a thread that does not start: the daemon ends with status 1, though others sleep in native calls', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-start-'));
  const env = {
    NODE_OPTIONS: `--import ${INJECT}`,
    PTNET_FAULT: 'datapath:start',
    PTNET_FAULT_FILE: join(dir, 'file'),
  };
  try {
    for (let i = 0; i < 5; i++) {
      const daemon = new Process([MAIN, 'host', '--run-dir', join(dir, 'run'), '--threads', '4'], env);
      assert.deepEqual(await ends(daemon), { code: 1, signal: null });
      assert.match(daemon.stderr, /injected into datapath/);
      assert.equal(existsSync(join(dir, 'run', 'control.sock')), false);
      rmSync(join(dir, 'file'));
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});

for (const thread of ['datapath', 'devices'] as const) {
  test(`R20: the ${thread} thread blocked in a native call: SIGTERM ends the daemon all the same`, async () => {
    const file = join('/tmp', `ptnet-fault-${process.pid}-block-${thread}`);
    const lab = await HoldsLab.start([], {
      NODE_OPTIONS: `--import ${INJECT}`,
      PTNET_FAULT: `${thread}:block`,
      PTNET_FAULT_FILE: file,
    });
    try {
      const guest = lab.guest('traffic', 'vale0:a');
      await guest.line(/^running/);
      writeFileSync(file, '');
      const late = lab.guest('traffic', 'vale0:b');
      await until('it blocks', () => existsSync(`${file}.blocked`));
      lab.daemon.kill('SIGTERM');
      assert.deepEqual(await ends(lab.daemon), { code: 1, signal: null });
      assert.match(lab.daemon.stderr, /the threads did not end in time; ending the process/);
      assert.equal(existsSync(join(lab.dir, 'control.sock')), false);
      await guest.line(/^gone/);
      late.kill();
    } finally {
      for (const made of [file, `${file}.blocked`]) rmSync(made, { force: true });
      await lab.stop();
    }
  });
}

test('R2: a trap in the datapath stops its switch: the daemon says so, refuses opens there, serves the others', async () => {
  const file = join('/tmp', `ptnet-fault-${process.pid}-trap`);
  const lab = await HoldsLab.start([], {
    NODE_OPTIONS: `--import ${INJECT}`,
    PTNET_FAULT: 'datapath:trap',
    PTNET_FAULT_FILE: file,
  });
  try {
    const guest = lab.guest('traffic', 'vale0:a');
    await guest.line(/^running/);
    writeFileSync(file, '');
    const stopped = async (): Promise<string | undefined> =>
      (await lab.status()).domains.find((d) => d.name === 'vale0')?.error;
    assert.equal(await until('its switch is stopped', stopped), 'injected trap');
    rmSync(file);
    const refused = lab.guest('traffic', 'vale0:b');
    await refused.exited;
    assert.match(refused.stderr, /vale0 was stopped by a fault \(injected trap\)/);
    const other = lab.guest('traffic', 'vale1:a');
    await other.line(/^running/);
    assert.match(lab.daemon.stderr, /vale0 was stopped by a fault in the datapath: injected trap/);
    guest.kill();
    await lab.guest('traffic', 'vale2:a').line(/^running/);
    lab.daemon.kill('SIGTERM');
    assert.equal((await ends(lab.daemon)).code, 0);
  } finally {
    rmSync(file, { force: true });
    await lab.stop();
  }
});
