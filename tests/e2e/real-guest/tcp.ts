// TCP between the kernels of two guests, in both directions: checksums of the bytes at both ends, and the frames that
// monitors of both ports saw (docs/monitors.md): one long segment where both have the VirtIO header, cut where one has not.

import { setTimeout as sleep } from 'node:timers/promises';
import { check, equal } from './checks.ts';
import type { Guest } from './guest.ts';
import type { Lab } from './lab.ts';
import type { Watch } from './watch.ts';

const TCP_BYTES = 8 * 2 ** 20;
const TCP_PORT = 5001;
const TRANSFER_MS = 120_000;
/**
 * The longest frame of an interface with an MTU of 1500, without segmentation offload. With it, segments have up to 64 KiB;
 * how long they become is up to the sender's stack and its timing (on a busy machine 13,098 bytes were the most).
 */
const FRAME = 1514;

export async function checkPing(a: Guest): Promise<void> {
  const replies = await a.ping('10.7.0.2', 5);
  check(replies >= 4, `${replies} of 5 pings were answered`);
}

const checksum = (output: string): string => /\b[0-9a-f]{32,128}\b/.exec(output)?.[0] ?? '';

/** Sends TCP_BYTES. @param headers whether the sender, and the receiver, have the VirtIO header */
async function transfer(
  lab: Lab,
  from: Guest,
  to: Guest,
  address: string,
  headers: [boolean, boolean],
): Promise<string> {
  const receiver = await to.background(`guest-tcp-receive ${TCP_PORT}`);
  const sentFrames = await lab.watch(`vale0:${from.name}/t`);
  const receivedFrames = await lab.watch(`vale0:${to.name}/r`);
  await sleep(500);
  const begin = Date.now();
  const sent = checksum(await from.run(`guest-tcp-send ${address} ${TCP_PORT} ${TCP_BYTES}`, TRANSFER_MS));
  let received = '';
  await lab.until('the receiver has a checksum', async () => (received = checksum(await receiver.output())) !== '');
  equal(received, sent, 'the checksum of what arrived');
  const seconds = (Date.now() - begin) / 1000;
  const frames = [
    await frameLengths(sentFrames, headers[0]),
    await frameLengths(receivedFrames, headers[0] && headers[1]),
  ];
  return `${from.name} to ${to.name} ${seconds.toFixed(1)} s, sent ${frames[0]}, received ${frames[1]}`;
}

/** Checks how long the longest frame is. @param segments whether segments may be longer than the MTU */
async function frameLengths(watch: Watch, segments: boolean): Promise<string> {
  const lengths = await watch.stop();
  const longest = lengths.reduce((most, len) => Math.max(most, len), 0);
  if (segments) check(longest > FRAME, `${watch.port}: no frame is longer than ${longest} bytes`);
  else check(longest > 0 && longest <= FRAME, `${watch.port}: the longest frame has ${longest} bytes`);
  return `${lengths.length} frames of up to ${longest} bytes`;
}

/** ping, then TCP from a to b and from b to a. @param headers whether a, and b, ask for the VirtIO header */
export async function tcp(lab: Lab, ...headers: [boolean, boolean]): Promise<string> {
  const guests = [await lab.vm('a'), await lab.vm('b')] as const;
  for (const [i, guest] of guests.entries()) await guest.load(headers[i]);
  const [a, b] = await lab.pair();
  await checkPing(a);
  const lengths = await Promise.all(guests.map(async (g) => (await lab.port(`vale0:${g.name}`)).vnetHdrLen));
  for (const [i, len] of lengths.entries()) {
    if (!headers[i]) equal(len, 0, 'the length of the header that the driver did not ask for');
  }
  const there = await transfer(lab, a, b, '10.7.0.2', headers);
  const back = await transfer(lab, b, a, '10.7.0.1', [headers[1], headers[0]]);
  for (const [i, guest] of guests.entries()) if (!headers[i]) await guest.load(true);
  return `headers of ${lengths.join(' and ')} bytes; ${TCP_BYTES} bytes ${there}; ${back}`;
}
