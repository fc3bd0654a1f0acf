/** What reads an interface's frames from a descriptor: here one end of a pair of sockets, with the rings in plain memory. */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { test } from 'node:test';
import { kring, nic_queue } from '../../../src/abi/index.ts';
import { FramePump } from '../../../src/kloop/nic-pump.ts';
import { Arena, ArenaSpace } from '../../../src/memory/index.ts';
import { closeFd, socketPair } from '../../../src/os/index.ts';

const BUF_SIZE = 2048;
const ENTRIES = 8;

test('a frame for which there is no buffer is read when there is one, also if no other one comes', () => {
  const arena = Arena.create();
  const space = new ArenaSpace(arena, 4096);
  const { m } = arena;
  const pages = (bytes: number): number => {
    const ofs = space.alloc(bytes);
    arena.mapAnonymous(ofs, Math.ceil(bytes / 4096) * 4096);
    return ofs;
  };
  const [txKring, rxKring] = [pages(kring.size), pages(kring.size)];
  kring.set.buf_size(m, rxKring, BUF_SIZE);
  kring.set.num_slots(m, rxKring, ENTRIES);
  const umem = { address: pages(ENTRIES * BUF_SIZE), bytes: ENTRIES * BUF_SIZE };
  const at = { rx: pages(4096), tx: pages(4096), fill: pages(4096), completion: pages(4096) };
  const [fd, cable] = socketPair();
  const link = { kind: 'packet', fd, longest: 1514 } as const;
  const config = { queue: pages(nic_queue.size), domain: 0, txKring, rxKring, hosted: false, umem, ledger: 0 };
  const pump = new FramePump(arena, { ...config, entries: ENTRIES, at, link }, link, 0);

  const frame = new Uint8Array(60).fill(7);
  writeSync(cable, frame);
  assert.equal(pump.receive(), 0);
  assert.equal(pump.due, false, 'nothing to be done without a buffer');
  const word = (ring: 'fill' | 'rx', ofs: number): number => (at[ring] + ofs) >>> 2;
  m.u32[word('fill', FramePump.rings.fill.desc)] = BUF_SIZE;
  m.u32[word('fill', FramePump.rings.fill.producer)] = 1;
  assert.equal(pump.due, true);
  assert.equal(pump.receive(), 1);
  assert.equal(m.u32[word('rx', FramePump.rings.rx.producer)], 1);
  const buffer = umem.address + m.u32[word('rx', FramePump.rings.rx.desc)]!;
  assert.deepEqual(m.u8.slice(buffer, buffer + 60), frame);
  assert.equal(pump.receive(), 0);
  assert.equal(pump.due, false, 'nothing more came');

  closeFd(fd);
  closeFd(cable);
  arena.unmap(0, arena.bytes);
});
