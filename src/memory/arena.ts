/**
 * Arenas: one shared WebAssembly.Memory per datapath thread, into whose own address range everything that thread works
 * on is mapped (docs/architecture.md, memory). What is not mapped is PROT_NONE: there, a plain load or store of the datapath
 * traps, and TypeScript would crash, so TypeScript touches only what it mapped (R2).
 *
 * `Arena` is the mapping half, usable on every thread; `ArenaSpace` hands out address ranges and lives where the
 * control thread is. Offsets in an arena are unsigned 32-bit numbers; never shift them with >> (R3).
 */
import type { Views } from '../abi/index.ts';
import { views } from '../abi/index.ts';
import {
  bufferAddress,
  errno,
  mapAnonymousFixed,
  mapFixed,
  PAGE_SIZE,
  PROT_NONE,
  PROT_READ,
  PROT_WRITE,
  SysError,
} from '../os/index.ts';
import { WASM_PAGE } from './webassembly.ts';

/** Largest arena: what 32-bit WebAssembly can address. */
export const ARENA_BYTES = 4 * 2 ** 30;

export const pageRound = (bytes: number): number => Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE;

export class Arena {
  readonly memory: WebAssembly.Memory;
  readonly bytes: number;
  /** Views over the whole arena. Only mapped parts may be touched. */
  readonly m: Views;
  readonly #address: number;

  /** Wraps a memory that `create` made, possibly on another thread of this process. */
  constructor(memory: WebAssembly.Memory) {
    this.memory = memory;
    this.bytes = memory.buffer.byteLength;
    this.m = views(memory.buffer);
    this.#address = bufferAddress(memory.buffer);
  }

  /** A new arena with nothing mapped. @param bytes multiple of 64 KiB, at most 4 GiB; costs address space only */
  static create(bytes = ARENA_BYTES): Arena {
    const pages = Math.ceil(bytes / WASM_PAGE);
    const arena = new Arena(new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }));
    arena.unmap(0, arena.bytes);
    return arena;
  }

  /** Process address of an offset, for system calls. */
  addressOf(ofs: number): number {
    return this.#address + ofs;
  }

  /**
   * Maps part of a file, shared, at `ofs`. All of ofs, bytes and fileOfs are multiples of the page size (of the file's
   * huge page size for files on huge pages).
   * @throws SysError, RangeError if the range leaves the arena
   */
  mapFile(ofs: number, bytes: number, fd: number, fileOfs: number, writable = true): void {
    this.#check(ofs, bytes);
    mapFixed(this.#address + ofs, bytes, fd, fileOfs, writable ? PROT_READ | PROT_WRITE : PROT_READ);
  }

  /** Maps zeroed private memory at `ofs`. */
  mapAnonymous(ofs: number, bytes: number): void {
    this.#check(ofs, bytes);
    mapAnonymousFixed(this.#address + ofs, bytes);
  }

  /** Takes away whatever is mapped at `ofs`: its pages go back, an access traps. */
  unmap(ofs: number, bytes: number): void {
    this.#check(ofs, bytes);
    mapAnonymousFixed(this.#address + ofs, bytes, PROT_NONE);
  }

  #check(ofs: number, bytes: number): void {
    if (!(ofs >= 0 && bytes > 0 && ofs + bytes <= this.bytes && ofs % PAGE_SIZE === 0 && bytes % PAGE_SIZE === 0)) {
      throw new RangeError(
        `arena range ${ofs} + ${bytes} is not page aligned or leaves the arena (${this.bytes} bytes)`,
      );
    }
  }
}

/** An address range is not to be had: the arena is full. */
export class ArenaFullError extends SysError {
  constructor(bytes: number, free: number) {
    super(
      `no ${bytes} contiguous bytes left in the arena (${free} bytes free in all): ` +
        'use smaller or fewer rings and buffers, or more datapath threads (--threads)',
      errno.ENOMEM,
    );
    this.name = 'ArenaFullError';
  }
}

/**
 * First-fit allocator of address ranges in an arena. A guard page, never mapped, stands before and after every range.
 * Maps nothing itself.
 */
export class ArenaSpace {
  readonly arena: Arena;
  /** Free ranges in ascending order, never adjacent. */
  #free: { ofs: number; bytes: number }[];
  readonly #taken = new Map<number, { ofs: number; bytes: number }>();

  /** @param start first offset handed out (tests use addresses above 2 GiB, R3); page 0 is never used */
  constructor(arena: Arena, start = PAGE_SIZE) {
    this.arena = arena;
    const first = Math.max(PAGE_SIZE, pageRound(start));
    this.#free = [{ ofs: first, bytes: arena.bytes - first }];
  }

  /**
   * A range of at least `bytes` whose process address is page aligned (or aligned to `align`, a power of two, as what
   * lies on huge pages has to be). Returns its offset.
   * @throws ArenaFullError
   */
  alloc(bytes: number, align = PAGE_SIZE): number {
    const need = pageRound(bytes);
    const base = this.arena.addressOf(0);
    for (const range of this.#free) {
      const ofs = Math.ceil((base + range.ofs + PAGE_SIZE) / align) * align - base;
      const end = ofs + need + PAGE_SIZE;
      if (end > range.ofs + range.bytes) continue;
      this.#taken.set(ofs, { ofs: range.ofs, bytes: end - range.ofs });
      range.bytes -= end - range.ofs;
      range.ofs = end;
      if (range.bytes === 0) this.#free = this.#free.filter((r) => r !== range);
      return ofs;
    }
    throw new ArenaFullError(need, this.freeBytes);
  }

  /** Gives a range back and unmaps it. */
  free(ofs: number): void {
    const taken = this.#taken.get(ofs);
    if (taken === undefined) throw new RangeError(`arena range ${ofs} is not allocated`);
    this.#taken.delete(ofs);
    this.arena.unmap(taken.ofs, taken.bytes);
    const i = this.#free.findIndex((r) => r.ofs > taken.ofs);
    this.#free.splice(i < 0 ? this.#free.length : i, 0, { ...taken });
    const merged: { ofs: number; bytes: number }[] = [];
    for (const r of this.#free) {
      const last = merged.at(-1);
      if (last !== undefined && last.ofs + last.bytes === r.ofs) last.bytes += r.bytes;
      else merged.push(r);
    }
    this.#free = merged;
  }

  /** Bytes not handed out, guards excluded from what is used. */
  get freeBytes(): number {
    return this.#free.reduce((sum, r) => sum + r.bytes, 0);
  }

  /** Free ranges, for tests and for `ptnet list`. */
  get freeRanges(): readonly { readonly ofs: number; readonly bytes: number }[] {
    return this.#free;
  }
}
