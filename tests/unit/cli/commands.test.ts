/** What commands print and what they make of their words, without a daemon: vm's arguments, list's tables, errors, numbers. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { DaemonStatus, PortStatus } from '../../../src/abi/index.ts';
import { listText, ratesText } from '../../../src/cli/commands/list.ts';
import { shellQuote } from '../../../src/cli/commands/vm.ts';
import { type DemoResult, demoText } from '../../../src/cli/demo.ts';
import { errorText, UsageError } from '../../../src/cli/errors.ts';
import { checkQemu, qemuArguments, readQemuArguments, runQemu } from '../../../src/cli/qemu.ts';
import { bytesText, durationText, table } from '../../../src/cli/table.ts';
import { ConfigError } from '../../../src/host/config.ts';

test('vm: the arguments are those of abi.md 4, memdev first', () => {
  const vm = {
    name: 'fw',
    ports: ['vale0:a'],
    sockets: ['/r/vm/fw/memdev.sock', '/r/vm/fw/ptnet0.sock'],
    regionBytes: 1,
  };
  assert.deepEqual(qemuArguments(vm, { memory: '512M', machine: 'pc' }), [
    '-object',
    'memory-backend-memfd,id=mem,size=512M,share=on',
    '-machine',
    'pc,memory-backend=mem',
    '-device',
    '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/r/vm/fw/memdev.sock"},"x-msg-timeout":60000}',
    '-device',
    '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/r/vm/fw/ptnet0.sock"},"x-msg-timeout":60000}',
  ]);
});

test('vm --iommu: the IOMMU stands before the devices; KVM leaves the interrupts to QEMU', () => {
  const vm = { name: 'fw', ports: ['vale0:a'], sockets: ['/r/m.sock'], regionBytes: 1 };
  const args = (kvm: boolean): string =>
    qemuArguments(vm, { memory: '1G', machine: 'q35', iommu: true, kvm }).join(' ');
  assert.match(args(false), /-machine q35,memory-backend=mem -device intel-iommu,caching-mode=on -device \{/);
  assert.match(args(true), /-machine q35,memory-backend=mem,kernel-irqchip=split /);
});

test('vm: memory, machine and KVM are taken from the QEMU command line', () => {
  const read = (line: string): unknown => readQemuArguments(line.split(' '));
  assert.deepEqual(read('-nographic'), { kvm: false });
  assert.deepEqual(read('-m 2G -M q35'), { memory: '2G', machine: 'q35', kvm: false });
  assert.deepEqual(read('--m size=1024,slots=2 -machine type=pc-q35-9.0,accel=kvm:tcg'), {
    memory: '1024M',
    machine: 'pc-q35-9.0',
    kvm: true,
  });
  assert.deepEqual(read('-m 1.5G'), { memory: '1.5G', kvm: false });
  assert.deepEqual(read('-m slots=2,size=4g,maxmem=8g'), { memory: '4g', kvm: false });
  assert.deepEqual(read('-enable-kvm -machine usb=off'), { kvm: true });
  assert.deepEqual(read('-accel kvm -m'), { kvm: true });
});

test('vm: a QEMU that will not do is named with its version', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-qemu-'));
  const fake = (name: string, script: string): string => {
    writeFileSync(join(dir, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    return join(dir, name);
  };
  try {
    const old = fake('old', 'echo "QEMU emulator version 10.0.2 (Debian)"');
    await assert.rejects(checkQemu(old), /old is QEMU 10\.0\.2: ptnet needs 10\.1 or newer/);
    const bare = fake('bare', 'echo "QEMU emulator version 11.1.3"');
    await assert.rejects(checkQemu(bare), /is QEMU 11\.1\.3, but built without the device vfio-user-pci/);
    await assert.rejects(checkQemu(fake('cat', 'echo meow')), /is not QEMU: --version says "meow"/);
    await assert.rejects(checkQemu(join(dir, 'none')), /cannot start .*none: there is no such program/);
    const good = fake('good', 'echo "QEMU emulator version 10.1.0"; echo "name \\"vfio-user-pci\\", bus PCI"');
    await checkQemu(good);
    assert.deepEqual(await runQemu(fake('three', 'exit 3'), []), { status: 3, text: 'QEMU ended with status 3' });
    assert.deepEqual(await runQemu(fake('die', 'kill -9 $$'), []), { status: 137, text: 'QEMU was ended by SIGKILL' });
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('words are quoted for the shell', () => {
  assert.equal(shellQuote('pc,memory-backend=mem'), 'pc,memory-backend=mem');
  assert.equal(shellQuote('{"a":1}'), `'{"a":1}'`);
  assert.equal(shellQuote("it's $HOME"), String.raw`'it'\''s $HOME'`);
  assert.equal(shellQuote(''), "''");
});

test('list: a row for each port, drops by reason', () => {
  const ring = { slots: 1024, packets: 5, bytes: 300, drops: {}, repairs: 0, signals: 0 };
  const status: DaemonStatus = {
    pid: 7,
    version: '1.2.3',
    uptimeSeconds: 3700,
    runDir: '/r',
    domains: [
      {
        name: 'vale0',
        kind: 'vale',
        thread: 0,
        running: true,
        ports: [
          {
            name: 'vale0:a',
            owner: { vm: 'fw' },
            mac: '02:00:00:00:00:01',
            region: 'fw',
            attached: true,
            running: true,
            vnetHdrLen: 0,
            txRings: [{ ...ring, drops: { bad: 2 } }],
            rxRings: [
              { ...ring, drops: { full: 3 } },
              { ...ring, drops: { full: 4 } },
            ],
          },
        ],
      },
    ],
    arenas: [{ thread: 0, freeBytes: 2 ** 32 - 2 * 2 ** 20, freeRanges: [[2 * 2 ** 20, 2 ** 32 - 2 * 2 ** 20]] }],
    regions: [
      {
        name: 'fw',
        memId: 1,
        bytes: 5 * 2 ** 20,
        pageBytes: 4096,
        buffers: 2050,
        freeBuffers: 0,
        rings: 2,
        freeRings: 0,
        freeInterfaces: 1,
      },
    ],
    vms: [{ name: 'fw', ports: ['vale0:a'], sockets: [], regionBytes: 5 * 2 ** 20 }],
  };
  assert.equal(
    listText(status),
    `ptnet 1.2.3, pid 7, up 1 h 1 min, run directory /r

PORT     OWNER  STATE    MAC                RINGS          TX PKTS  RX PKTS  DROPS          REGION
vale0:a  vm fw  running  02:00:00:00:00:01  1x1024/2x1024        5       10  bad 2, full 7  fw

DOMAIN  KIND  THREAD  PORTS  STATE
vale0   vale       0      1  running

REGION  MEMID     SIZE    PAGES  BUFFERS  FREE  RINGS  FREE
fw          1  5.0 MiB  4.0 KiB     2050     0      2     0

VM  PORTS    QEMU ARGUMENTS
fw  vale0:a  ptnet vm fw
`,
  );
  assert.match(listText({ ...status, domains: [], regions: [], vms: [] }), /\nno ports\n$/);
});

const ring = (packets: number, drops: Record<string, number>) => ({
  slots: 64,
  packets,
  bytes: 0,
  drops,
  repairs: 0,
  signals: 0,
});
/** A status with the port vale0:a of this owner and these counters, and an interface. */
const statusOf = (owner: PortStatus['owner'], tx: number, rx: number, full: number): DaemonStatus => ({
  pid: 7,
  version: '1.2.3',
  uptimeSeconds: 61,
  runDir: '/r',
  domains: [
    {
      name: 'vale0',
      kind: 'vale',
      thread: 0,
      running: true,
      ports: [
        {
          name: 'vale0:a',
          owner,
          attached: true,
          running: true,
          vnetHdrLen: 0,
          mac: '02:00:00:00:00:01',
          region: 'r',
          interface: { name: 'eth1', mode: 'packet', because: 'no XDP', running: false, mtu: 1500, gone: false },
          txRings: [ring(tx, {})],
          rxRings: [ring(rx, { full })],
        },
      ],
    },
  ],
  arenas: [],
  regions: [],
  vms: [],
});

test('list: an interface has its line: how it is had, its link, and why not in a better way', () => {
  assert.match(listText(statusOf({ nobody: true }, 0, 0, 0)), /^eth1 +vale0:a +packet +down +1500 +no XDP$/m);
});

test('list --watch: what a port gained in a second; one that is another by now began at 0', () => {
  const row = (before: DaemonStatus, now: DaemonStatus): string | undefined =>
    /^vale0:a.*$/m.exec(ratesText(before, now, 2))?.[0].replace(/ +/g, ' ');
  const before = statusOf({ pid: 5, uid: 0 }, 100, 50, 4);
  const now = statusOf({ pid: 5, uid: 0 }, 300, 50, 10);
  assert.equal(row(before, now), 'vale0:a pid 5 uid 0 running 100 0 full 3');
  assert.equal(row(before, before), 'vale0:a pid 5 uid 0 running 0 0 -');
  assert.equal(row(statusOf({ pid: 4, uid: 0 }, 900, 900, 90), now), 'vale0:a pid 5 uid 0 running 150 25 full 5');
  assert.equal(row({ ...before, pid: 6 }, now), 'vale0:a pid 5 uid 0 running 150 25 full 5');
  assert.match(ratesText(before, { ...now, domains: [] }, 2), /\nno ports\n$/);
});

test('errors are a line each, with a stack only on request', () => {
  assert.equal(errorText(new UsageError('-x 1: no\nmore'), false), 'ptnet: -x 1: no\n');
  assert.equal(
    errorText(new ConfigError(['a.yaml:1:1: x', 'a.yaml:2:1: y']), false),
    'ptnet: a.yaml:1:1: x\nptnet: a.yaml:2:1: y\n',
  );
  const marked = 'open: port name "va": why\n  va\n    ^: EINVAL';
  assert.equal(errorText(new Error(marked), false), 'ptnet: open: port name "va": why\n  va\n    ^\n');
  assert.match(errorText(new Error('boom'), true), /boom\n +at /);
  assert.throws(
    () => readFileSync('/nonexistent/x'),
    (e) => errorText(e, false) === 'ptnet: /nonexistent/x: no such file or directory: ENOENT\n',
  );
});

test('tables, sizes and durations', () => {
  assert.equal(
    table(
      ['A', 'N'],
      [
        ['xyz', '1'],
        ['x', '100'],
      ],
      [1],
    ),
    'A      N\nxyz    1\nx    100\n',
  );
  assert.deepEqual([0, 1023, 1024, 5.5 * 2 ** 30].map(bytesText), ['0 B', '1023 B', '1.0 KiB', '5.5 GiB']);
  assert.deepEqual([0.5, 61, 3600, 90_000].map(durationText), ['0 s', '1 min 1 s', '1 h 0 min', '1 d 1 h']);
});

test('the summary of the demo says what was sent, received, dropped, and the latency', () => {
  const result: DemoResult = {
    size: 60,
    sent: 3_000_000,
    sentSeconds: 3,
    received: 2_000_000,
    receivedSeconds: 2,
    droppedFull: 1_000_000,
    rtt: { sent: 100, received: 99, minNs: 1, meanNs: 2, p50Ns: 20_000, p99Ns: 90_000, p999Ns: 95_000, maxNs: 100_000 },
    idleCpu: 0.004,
    idleSeconds: 3,
  };
  assert.equal(
    demoText(result),
    `  sent         3,000,000  packets of 60 bytes in 3.00 s: 1.00 Mpps
  received     2,000,000  in 2.00 s: 1.00 Mpps
  dropped      1,000,000  (33.3 %), the receiver's ring was full: VALE drops then
  ping-pong           99  round trips, p50 20.0 µs, p99 90.0 µs, 1 lost
  idle daemon      0.4 %  of one CPU, seen over 3 s with a guest waiting
`,
  );
});
