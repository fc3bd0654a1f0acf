/** Slots as words of 32 bits, for loops over many of them (`ring.slotOfs`): buf_idx, then len with the flags above it. */
import { NS_BUF_CHANGED, NS_MOREFRAG, netmap_slot } from '../api/index.ts';

/** Words of a slot. */
export const SLOT_WORDS = netmap_slot.size / 4;
/** Which word holds len and flags, and the parts of that word. */
export const LEN_FLAGS = netmap_slot.ofs.len / 4;
export const LEN = 0xffff;
export const BUF_CHANGED = NS_BUF_CHANGED << 16;
export const MOREFRAG = NS_MOREFRAG << 16;
