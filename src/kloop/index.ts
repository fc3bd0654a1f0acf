/** The datapath thread: its loop, its mailbox, and the asking side of it. */
export * from './client.ts';
export * from './commands.ts';
export * from './kloop.ts';
