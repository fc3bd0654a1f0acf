/** The datapath thread: its loop, its mailbox, and the asking side of it. */
export * from './client.ts';
export * from './commands.ts';
export * from './courtesy.ts';
export * from './kloop.ts';
export type { NicLink, NicQueueConfig } from './nic-queues.ts';
export { nicRingBytes } from './nic-queues.ts';
