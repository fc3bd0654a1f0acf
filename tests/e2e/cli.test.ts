/** The commands as a user runs them: ./ptnet in processes of its own. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import type { DaemonStatus } from '../../src/abi/index.ts';
import { openPort } from '../../src/api/index.ts';
import type { DemoResult } from '../../src/cli/demo.ts';
import type { PktGenResult } from '../../src/cli/pkt-gen/report.ts';
import { usableCpus } from '../../src/os/index.ts';
import { reported, until as untilHolds } from './ptnet.ts';

/** Flags of pkt-gen for lines that say how many packets it has counted. */
const COUNTING = ['-N', '-T', '100'];

interface Started {
  readonly child: ChildProcess;
  /** What it has said by now. */
  readonly stdout: string;
  readonly stderr: string;
  /** Resolves at the end. */
  readonly ended: Promise<{ status: number | null; stdout: string; stderr: string }>;
}

function start(t: TestContext, ...args: string[]): Started {
  const child = spawn('./ptnet', args, { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => void child.kill('SIGKILL'));
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (d: Buffer) => (stdout += d.toString()));
  child.stderr.on('data', (d: Buffer) => (stderr += d.toString()));
  return {
    child,
    get stdout() {
      return stdout;
    },
    get stderr() {
      return stderr;
    },
    ended: once(child, 'close').then(() => ({ status: child.exitCode, stdout, stderr })),
  };
}

function run(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync('./ptnet', args, { encoding: 'utf8' });
}

/** A daemon in a run directory of its own; resolves when it answers. */
async function host(t: TestContext, ...args: string[]): Promise<Started & { runDir: string }> {
  const runDir = mkdtempSync(join(tmpdir(), 'ptnet-cli-'));
  t.after(() => rmSync(runDir, { recursive: true, force: true }));
  const daemon = start(t, 'host', '--run-dir', runDir, '--log-level', 'error', ...args);
  await until(() => run('list', '--run-dir', runDir).status === 0);
  return Object.assign(daemon, { runDir });
}

/** Looks until it holds; only a hang takes so long. */
const until = (holds: () => boolean): Promise<void> => untilHolds(String(holds), holds);

function list(runDir: string): DaemonStatus {
  return JSON.parse(run('list', '--json', '--run-dir', runDir).stdout) as DaemonStatus;
}

const runs = (runDir: string, name: string): boolean =>
  list(runDir)
    .domains.flatMap((d) => d.ports)
    .some((p) => p.name === name && p.running);

test('host, list, vm, stop', async (t) => {
  const daemon = await host(t, '--vm', 'fw=vale0:a,vale1:b');
  const { domains, vms } = list(daemon.runDir);
  assert.deepEqual(
    domains.map((d) => d.name),
    ['vale0', 'vale1'],
  );
  assert.match(run('list', '--run-dir', daemon.runDir).stdout, /^vale1:b +vm fw +waiting /m);
  const args = JSON.parse(run('vm', 'fw', '--json', '--qemu', 'q', '--run-dir', daemon.runDir).stdout) as string[];
  assert.equal(args[0], 'q');
  assert.deepEqual(
    args.filter((a) => a.startsWith('{')).map((a) => (JSON.parse(a) as { socket: { path: string } }).socket.path),
    vms[0]?.sockets,
  );
  const unknown = run('vm', 'web', '--run-dir', daemon.runDir);
  assert.deepEqual(
    [unknown.status, unknown.stderr],
    [2, 'ptnet: the daemon has no VM called "web": it serves fw (see ptnet host --vm)\n'],
  );
  const memory = run('vm', 'fw', '--memory', 'much', '--run-dir', daemon.runDir);
  assert.deepEqual(
    [memory.status, memory.stderr],
    [2, 'ptnet: --memory much: must be a size as QEMU writes it, e.g. 512M, 2G\n'],
  );
  const second = run('host', '--run-dir', daemon.runDir);
  assert.equal(second.status, 1);
  assert.match(second.stderr, /^ptnet: a daemon \(process \d+\) runs in .* already: .*\n$/);
  assert.equal(run('stop', '--run-dir', daemon.runDir).status, 0);
  assert.equal((await daemon.ended).status, 0);
  const gone = run('list', '--run-dir', daemon.runDir);
  assert.equal(gone.status, 1);
  assert.match(gone.stderr, /^ptnet: no ptnet daemon runs in .*\n$/);
});

test('R20: a daemon whose stdin, stdout or stderr is closed, full or read by nobody runs, serves and ends as ever', async (t) => {
  for (const with_ of ['2>&-', '1>&-', '0<&- 1>&- 2>&-', '2>/dev/full', '2</dev/null', '2>&1 >/dev/null']) {
    const runDir = mkdtempSync(join(tmpdir(), 'ptnet-cli-'));
    t.after(() => rmSync(runDir, { recursive: true, force: true }));
    const script = `exec ./ptnet host --run-dir ${runDir} --log-level trace ${with_}`;
    const child = spawn('bash', ['-c', script], { stdio: ['ignore', 'pipe', 'ignore'] });
    t.after(() => void child.kill('SIGKILL'));
    const ended = once(child, 'exit');
    if (with_.startsWith('2>&1')) child.stdout.destroy();
    else child.stdout.resume();
    await until(() => run('list', '--run-dir', runDir).status === 0);
    for (const fd of [0, 1, 2]) {
      const file = readlinkSync(`/proc/${child.pid}/fd/${fd}`);
      assert.doesNotMatch(file, /lock|memfd|anon_inode/, `${with_}: descriptor ${fd} is none of the daemon's own`);
    }
    const ping = run('pkt-gen', '--run-dir', runDir, '-i', 'vale0:a', '-f', 'tx', '-n', '10');
    assert.equal(ping.status, 0, `${with_}: ${ping.stderr}`);
    assert.equal(run('stop', '--run-dir', runDir).status, 0);
    assert.deepEqual(await ended, [0, null], with_);
  }
});

test('what cannot be printed is an error; a stderr that takes nothing changes no exit status', () => {
  const status = (redirected: string, ...args: string[]): [number | null, string] => {
    const { status: code, stderr } = spawnSync('bash', ['-c', `exec ./ptnet "$@" ${redirected}`, 'bash', ...args]);
    return [code, stderr.toString()];
  };
  assert.deepEqual(status('>/dev/full', 'list', '--help'), [1, 'ptnet: stdout: no space left on device: ENOSPC\n']);
  assert.equal(status('1</dev/null', 'list', '--help')[0], 1);
  for (const none of ['2>/dev/full', '2>&-', '2</dev/null']) {
    assert.deepEqual(status(none, 'list', '--run-dir', '/nonexistent'), [1, ''], none);
    assert.deepEqual(status(none, 'list', '--nonsense'), [2, ''], none);
    assert.deepEqual(status(none, 'list', '--help'), [0, ''], none);
  }
});

test('list --json: a reader that is slow gets all of it', async (t) => {
  const { runDir } = await host(t);
  const rings = { runDir, txRings: 11, rxRings: 11, txSlots: 16, rxSlots: 16 };
  const ports = await Promise.all(Array.from({ length: 20 }, (_, i) => openPort(`vale0:p${i}`, rings)));
  t.after(() => Promise.all(ports.map((port) => port.close())));
  // A pipe takes 64 KiB; the rest is still to be written when the command has printed it.
  const slow = 'set -o pipefail; ./ptnet list --json --run-dir "$1" | { sleep 2; cat; }';
  const { status, stdout } = spawnSync('bash', ['-c', slow, 'bash', runDir], { encoding: 'utf8' });
  assert.ok(stdout.length > 65536, `${stdout.length} bytes`);
  const { domains } = JSON.parse(stdout) as DaemonStatus;
  assert.deepEqual([status, domains.flatMap((d) => d.ports).length], [0, 20]);
});

test('pkt-gen: what one process sends, another receives; Ctrl-C ends it with its report', async (t) => {
  const { runDir } = await host(t);
  // The ring has room for all, however slow the receiver is.
  const rx = start(
    t,
    'pkt-gen',
    '--run-dir',
    runDir,
    '-i',
    'vale0:b@conf:rx-slots=4096',
    '-f',
    'rx',
    '--json',
    ...COUNTING,
  );
  await until(() => runs(runDir, 'vale0:b'));
  const tx = run('pkt-gen', '--run-dir', runDir, '-i', 'vale0:a', '-f', 'tx', '-n', '2000', '-R', '10000', '-l', '100');
  assert.equal(tx.status, 0, tx.stderr);
  assert.match(
    tx.stdout,
    /^Sending on vale0:a: 1 queues.*\nSent 2000 packets 200000 bytes \d+ events 100 bytes each in .*\nSpeed: /,
  );
  await until(() => reported(rx.stderr) === 2000);
  rx.child.kill('SIGINT');
  const { status, stdout } = await rx.ended;
  assert.equal(status, 0);
  const result = JSON.parse(stdout) as PktGenResult;
  assert.equal(result.packets, 2000);
  assert.equal(result.bytes, 200_000);
  await until(() => list(runDir).domains.length === 0);
});

test('pkt-gen: ping and pong between two processes', async (t) => {
  const { runDir } = await host(t);
  const pong = start(t, 'pkt-gen', '--run-dir', runDir, '-i', 'vale0:b', '-f', 'pong');
  await until(() => runs(runDir, 'vale0:b'));
  const ping = run('pkt-gen', '--run-dir', runDir, '-i', 'vale0:a', '-f', 'ping', '-n', '500');
  assert.equal(ping.status, 0, ping.stderr);
  assert.match(
    ping.stdout,
    /RTT over 500 packets: min \d+ av \d+ ns\nRTT p50 \d+ p99 \d+ max \d+ ns, 500 sent, 0 lost\n$/,
  );
  pong.child.kill('SIGTERM');
  const { status, stdout } = await pong.ended;
  assert.equal(status, 0);
  assert.match(stdout, /Answered 500 packets/);
});

test('R20: a signal ends the daemon with clients attached; they say so in a line', async (t) => {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const daemon = await host(t);
    const rx = start(t, 'pkt-gen', '--run-dir', daemon.runDir, '-i', 'vale0:b', '-f', 'rx');
    await until(() => runs(daemon.runDir, 'vale0:b'));
    daemon.child.kill(signal);
    assert.equal((await daemon.ended).status, signal === 'SIGTERM' ? 0 : null);
    const { status, stderr } = await rx.ended;
    assert.equal(status, 1);
    assert.match(stderr, /^ptnet: the daemon of port vale0:b is gone .*\n$/m);
    assert.doesNotMatch(stderr, /\n {4}at /);
  }
});

for (const [what, last, flags, said] of [
  ['rx', 'vale0:b', ['-f', 'rx'], /^Received 10 packets 600 bytes /m],
  [
    'rxseq',
    'vale0:b',
    ['-f', 'rxseq'],
    /^Received 10 packets 600 bytes .*\n.*\nSequence: 0 lost in 0 gaps, 0 out of order$/m,
  ],
  ['rx -p', 'vale0:b-1', ['-f', 'rx', '-p', '2'], /^Received 10 packets 600 bytes /m],
  ['tx -p', 'vale0:b-1', ['-f', 'tx', '-p', '2', '-R', '600'], /^Sent \d+ packets /m],
] as const) {
  test(`pkt-gen ${what}: when the port goes, what was counted is told before the error`, async (t) => {
    const daemon = await host(t);
    const gen = start(t, 'pkt-gen', '--run-dir', daemon.runDir, '-i', 'vale0:b', ...flags, ...COUNTING);
    await until(() => runs(daemon.runDir, last));
    const tx = ['-f', 'txseq', '-n', '10'];
    assert.equal(run('pkt-gen', '--run-dir', daemon.runDir, '-i', 'vale0:a', ...tx).status, 0);
    await until(() => reported(gen.stderr) >= 10);
    assert.equal(run('stop', '--run-dir', daemon.runDir).status, 0);
    const { status, stdout, stderr } = await gen.ended;
    assert.equal(status, 1);
    assert.match(stdout, said);
    const [, told] = / (\d+) packets/.exec(stdout)!;
    assert.ok(Number(told) >= reported(stderr), 'what the lines said, and what came after them');
    assert.match(stderr, /^ptnet: the daemon of port vale0:b(-[01])? is gone .*\n$/m);
  });
}

test('pkt-gen -w: a signal ends the waiting, and nothing is sent', async (t) => {
  const daemon = await host(t);
  for (const [name, threads] of [
    ['vale0:b', '1'],
    ['vale0:c', '2'],
  ] as const) {
    const tx = start(t, 'pkt-gen', '--run-dir', daemon.runDir, '-i', name, '-f', 'tx', '-w', '3600', '-p', threads);
    await until(() => tx.stdout.includes(`Sending on ${name}`));
    tx.child.kill('SIGINT');
    const { status, stdout } = await tx.ended;
    assert.equal(status, 0);
    assert.match(stdout, /\nSent nothing\.\n$/);
  }
});

test('pkt-gen: a sender whose packets nobody takes says what it waits for', async (t) => {
  const daemon = await host(t);
  const tx = start(t, 'pkt-gen', '--run-dir', daemon.runDir, '-i', 'netmap:x{1', '-f', 'tx', '-n', '10');
  await until(() => tx.stderr.includes('does anybody receive?'));
  tx.child.kill('SIGINT');
  const { status, stdout } = await tx.ended;
  assert.equal(status, 0);
  assert.match(stdout, /^Sent 10 packets /m);
});

test('host --cpus: its datapath threads are pinned, and nothing else; a CPU that is none is an error', async (t) => {
  const cpu = usableCpus().at(-1)!;
  const daemon = await host(t, '--cpus', `${cpu}`);
  const pid = list(daemon.runDir).pid;
  const allowed = readdirSync(`/proc/${pid}/task`).map(
    (task) => /^Cpus_allowed_list:\s+(.*)$/m.exec(readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8'))?.[1],
  );
  const here = /^Cpus_allowed_list:\s+(.*)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  assert.equal(allowed.filter((cpus) => cpus !== here).length, usableCpus().length > 1 ? 1 : 0);
  assert.ok(allowed.includes(`${cpu}`));
  const { status, stderr } = run('host', '--run-dir', `${daemon.runDir}2`, '--cpus', '1023');
  assert.equal(status, 1);
  assert.match(stderr, /^ptnet: cpus: CPU 1023 is not one that this process may use \(.*\)\n$/m);
});

test('a configuration that cannot be read ends with 2', () => {
  const { status, stderr } = run('host', '--config', '/nonexistent/ptnet.yaml');
  assert.equal(status, 2);
  assert.match(stderr, /^ptnet: cannot read the configuration: .*\n$/);
});

test('wrong command lines and configurations end with 2, and a line for each fault', () => {
  for (const args of [['nonsense'], ['pkt-gen', '-q'], ['pkt-gen'], ['pkt-gen', '-i', 'vale0:a', '-l', '1'], ['vm']]) {
    const { status, stderr } = run(...args);
    assert.equal(status, 2, args.join(' '));
    assert.match(stderr, /^ptnet: .*\n$/);
  }
  const { status, stderr } = run('host', '--vm', 'a=b', '--threads', 'x');
  assert.equal(status, 2);
  assert.match(stderr, /^ptnet: --vm a=b: .*\nptnet: --threads x: .*\n$/);
});

test('names that are none end every command with 2, and a mark under the character; no daemon is asked', () => {
  const wrong: readonly (readonly [readonly string[], string])[] = [
    [['pkt-gen', '-i', 'netmap:'], '  netmap:\n         ^\n'],
    [['pkt-gen', '-p', '2', '-i', 'vale0:a b'], '  vale0:a b\n         ^\n'],
    [['bridge', '-i', 'vale0:a', '-i', 'eth0'], '  eth0\n  ^\n'],
    [['bridge', '-L', '-i', 'ptnet:x'], '  ptnet:x\n  ^\n'],
    [['lb', '-i', 'vale0:'], '  vale0:\n        ^\n'],
    [['lb', '-i', 'vale0:a', '-p', 'b/c:2'], '  netmap:b/c{0\n           ^\n'],
    [['lb', '-i', 'null:a'], '  null:a{0\n        ^\n'],
    [['nmreplay', '-f', '/nonexistent', '-i', 'va'], '  va\n  ^\n'],
    [['dump', '-w', '/nonexistent/x', '-i', 'vale0:a/q'], '  vale0:a/q\n          ^\n'],
    [['up', 'vale0:a@'], '  vale0:a@\n          ^\n'],
    [['up', 'vale0:a', '--slots', '1'], '--slots 1: must be a whole number from 2 to 4096\n'],
    [['vale-ctl', '-g', 'vale0:'], '  vale0:\n        ^\n'],
    [['vale-ctl', '-g', 'v-'], '  netmap:v-\n           ^\n'],
    [['vale-ctl', '-l', 'netmap:v'], '-l netmap:v: must be valeSSS:INTERFACE\n'],
    [['vale-ctl', '-a', 'v0'], '  v0\n  ^\n'],
    [['vale-ctl', '-d', 'netmap:v0'], '-d netmap:v0: must be valeSSS:INTERFACE\n'],
    [['vale-ctl', '-n', 'v{0'], '-n v{0: must be the name of an interface\n'],
    [['vale-ctl', '-r', 'v 0'], '  netmap:v 0\n          ^\n'],
    [['vale-ctl', '-n', 'v', '-m', 'a/x'], '-m a/x: must be the name of a region\n'],
    [['vale-ctl', '-n', 'v', '-C', '64,x'], '  64,x\n     ^\n'],
  ];
  for (const [args, end] of wrong) {
    const { status, stdout, stderr } = run(...args);
    assert.deepEqual([status, stdout], [2, ''], `${args.join(' ')}: ${stderr}`);
    assert.ok(stderr.startsWith('ptnet: ') && stderr.endsWith(end), `${args.join(' ')}: ${stderr}`);
  }
});

test('every command has help with examples', () => {
  for (const name of ['host', 'list', 'pkt-gen', 'vm', 'stop', 'demo']) {
    const { status, stdout } = run(name, '--help');
    assert.equal(status, 0);
    if (name !== 'demo') assert.match(stdout, /--run-dir <dir>/, name);
    assert.match(stdout, /\nExamples:\n {2}# .*\n {2}.*ptnet /, name);
  }
});

test('demo: every packet is accounted for', () => {
  const { status, stdout, stderr } = run('demo', '--seconds', '1', '--json');
  assert.equal(status, 0, stderr);
  const result = JSON.parse(stdout) as DemoResult;
  assert.ok(result.received > 0);
  assert.equal(result.sent, result.received + result.droppedFull);
  assert.ok(result.rtt.received > 0);
});
