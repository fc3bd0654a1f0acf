// Steps with pkt-gen: counted packets and round trips between a guest and the host, between guests, and at a monitor.

import { setTimeout as sleep } from 'node:timers/promises';
import type { PortStatus } from '../../../src/abi/index.ts';
import { check, equal } from './checks.ts';
import { pktGenCount } from './guest.ts';
import type { Lab } from './lab.ts';

/** Packets of a counted transfer, and how many a second: slow enough for a guest without hardware help. */
export const PACKETS = 10_000;
export const RATE = 5_000;
export const TRANSFER_MS = 120_000;
const ROUND_TRIPS = 200;

/** Packets that the ports of machines on the switch sent, whatever they were: interfaces have things to say of their own. */
async function sentByMachines(lab: Lab): Promise<number> {
  const { domains } = await lab.daemon.status();
  const ports = domains.flatMap((d) => d.ports).filter((p) => 'vm' in p.owner && /^vale0:\w+$/.test(p.name));
  return ports.flatMap((p) => p.txRings).reduce((sum, ring) => sum + ring.packets, 0);
}

/**
 * What was sent is what arrived and what the daemon says that it dropped at the receiver: VALE does not wait.
 * @param others packets that somebody else sent meanwhile: any of them may have arrived, or been dropped, too
 */
function checkTransfer(sent: number, received: number, dropped: number, others: number): string {
  equal(sent, PACKETS, 'the number of packets sent');
  const extra = received + dropped - sent;
  const sum = `received (${received}) + dropped by the daemon (${dropped})`;
  check(extra >= 0 && extra <= others, `${sum} is not ${sent}, and up to ${others} of others`);
  check(received >= sent / 2, `only ${received} of ${sent} packets arrived`);
  const besides = extra > 0 ? `, ${extra} of others among them` : '';
  return `${received} of ${sent} packets, ${dropped} dropped at the full receiver${besides}`;
}

// ---- Packets between a guest and the host ----------------------------------------------------------------------

export async function tx(lab: Lab): Promise<string> {
  const a = await lab.vm('a');
  await a.up();
  const atFirst = await sentByMachines(lab);
  const receiver = await lab.pktGen('vale0:host', ['-f', 'rx']);
  const before = await lab.dropped('vale0:host');
  const sent = pktGenCount(await a.run(a.pktGenCommand(`-f tx -n ${PACKETS} -R ${RATE}`), TRANSFER_MS));
  await sleep(500);
  const dropped = (await lab.dropped('vale0:host')) - before;
  await receiver.end('SIGINT');
  const { packets: got } = await receiver.result(5_000);
  return checkTransfer(sent, got, dropped, (await sentByMachines(lab)) - atFirst - sent);
}

export async function rx(lab: Lab): Promise<string> {
  const a = await lab.vm('a');
  await a.up();
  const atFirst = await sentByMachines(lab);
  const receiver = await a.background(a.pktGenCommand('-f rx'));
  await lab.until('pkt-gen receives', async () => (await receiver.output()).includes('reading from'));
  const before = await lab.dropped('vale0:a');
  const sender = await lab.pktGen('vale0:host', ['-f', 'tx', '-n', String(PACKETS), '-R', String(RATE)]);
  const { packets: sent } = await sender.result(TRANSFER_MS);
  await sleep(500);
  const dropped = (await lab.dropped('vale0:a')) - before;
  const got = pktGenCount(await receiver.stop());
  return checkTransfer(sent, got, dropped, (await sentByMachines(lab)) - atFirst);
}

/** The guest asks, the host answers. */
export async function ping(lab: Lab): Promise<string> {
  const a = await lab.vm('a');
  await a.up();
  const answerer = await lab.pktGen('vale0:host', ['-f', 'pong']);
  const output = await a.run(a.pktGenCommand(`-f ping -n ${ROUND_TRIPS}`), TRANSFER_MS);
  await answerer.end('SIGINT');
  const { packets: answers } = await answerer.result(5_000);
  check(answers >= ROUND_TRIPS, `the host answered ${answers} of ${ROUND_TRIPS} pings`);
  const rtt = /RTT over (\d+) packets: min (\d+) av (\d+) ns|RTT: min (\d+) av (\d+)/.exec(output);
  return `${ROUND_TRIPS} round trips${rtt === null ? '' : `; ${rtt[0]}`}`;
}

/** The host asks, the guest answers. */
export async function pong(lab: Lab): Promise<string> {
  const a = await lab.vm('a');
  await a.up();
  const answerer = await a.background(a.pktGenCommand('-f pong'));
  await lab.until('pkt-gen answers', async () => /pong/.test(await answerer.output()));
  const asker = await lab.pktGen('vale0:host', ['-f', 'ping', '-n', String(ROUND_TRIPS)]);
  const { rtt } = await asker.result(TRANSFER_MS);
  await answerer.stop();
  check((rtt?.received ?? 0) >= ROUND_TRIPS * 0.9, `the guest answered ${rtt?.received} of ${ROUND_TRIPS} pings`);
  return `${rtt?.received} of ${rtt?.sent} round trips, p50 ${Math.round((rtt?.p50Ns ?? 0) / 1000)} µs`;
}

// ---- Between two guests ----------------------------------------------------------------------------------------

export async function vmToVm(lab: Lab): Promise<string> {
  const [a, b] = await lab.pair();
  const atFirst = await sentByMachines(lab);
  const receiver = await b.background(b.pktGenCommand('-f rx'));
  await lab.until('pkt-gen receives', async () => (await receiver.output()).includes('reading from'));
  const before = await lab.dropped('vale0:b');
  const sent = pktGenCount(await a.run(a.pktGenCommand(`-f tx -n ${PACKETS} -R ${RATE}`), TRANSFER_MS));
  await sleep(500);
  const dropped = (await lab.dropped('vale0:b')) - before;
  const got = pktGenCount(await receiver.stop());
  return checkTransfer(sent, got, dropped, (await sentByMachines(lab)) - atFirst - sent);
}

/** A guest whose only port is a monitor of another guest's: its pkt-gen counts what arrives there, and nothing that it sends arrives. */
export async function monitor(lab: Lab): Promise<string> {
  const [b, watcher] = [await lab.vm('b'), await lab.vm('watcher')];
  await b.up();
  await watcher.up();
  const watching = await watcher.background(watcher.pktGenCommand('-f rx'));
  const receiver = await b.background(b.pktGenCommand('-f rx'));
  await lab.until('pkt-gen receives', async () => (await receiver.output()).includes('reading from'));
  await lab.until('pkt-gen watches', async () => (await watching.output()).includes('reading from'));
  const before = { b: packetsOf(await lab.port('vale0:b')), watcher: packetsOf(await lab.watcher()) };
  const lost = dropsOf(await lab.watcher());
  const sender = await lab.pktGen('vale0:host', ['-f', 'tx', '-n', String(PACKETS), '-R', String(RATE)]);
  const { packets: sent } = await sender.result(TRANSFER_MS);
  await sleep(500);
  const arrived = packetsOf(await lab.port('vale0:b')) - before.b;
  const dropped = dropsOf(await lab.watcher()) - lost;
  const seen = packetsOf(await lab.watcher()) - before.watcher;
  equal(seen + dropped, arrived, `what the monitor got (${seen}) + dropped at its full ring (${dropped})`);
  check(seen >= sent / 2, `the monitor saw only ${seen} of ${sent} packets`);
  check(pktGenCount(await watching.stop()) >= seen, 'pkt-gen in the guest counted less than the daemon');
  await watcher.run(watcher.pktGenCommand('-f tx -n 100'));
  const nowhere = (await lab.watcher()).txRings.reduce((sum, r) => sum + (r.drops['nodst'] ?? 0), 0);
  check(nowhere >= 100, `only ${nowhere} of 100 packets that the monitor sent went nowhere`);
  await receiver.stop();
  return `${seen} of ${arrived} packets, ${dropped} dropped at the full monitor; 100 that it sent went nowhere`;
}

const packetsOf = ({ rxRings }: PortStatus): number => rxRings.reduce((sum, r) => sum + r.packets, 0);
const dropsOf = ({ rxRings }: PortStatus): number =>
  rxRings.flatMap((r) => Object.values(r.drops)).reduce((sum, n) => sum + n, 0);
