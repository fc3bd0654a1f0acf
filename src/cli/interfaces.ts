/**
 * Which interfaces `ptnet up` processes have, for `ptnet ifconfig`: a file each in RUN_DIR/interfaces, written by the
 * process and removed with it. Interfaces belong to network namespaces: only those of one's own are shown.
 */
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { interfaceFlags } from '../os/index.ts';

export interface InterfaceRecord {
  readonly pid: number;
  /** Network namespace, as /proc names it. */
  readonly namespace: string;
  readonly name: string;
  readonly port: string;
  readonly vnetHdrLen: number;
  readonly queues: number;
  readonly rxcsum: boolean;
  readonly lro: boolean;
}

const ownNamespace = (): string => readlinkSync('/proc/self/ns/net');

const folder = (runDir: string): string => join(runDir, 'interfaces');

/** Writes this process's record. Returns what removes it. */
export function recordInterface(runDir: string, record: Omit<InterfaceRecord, 'pid' | 'namespace'>): () => void {
  const path = join(folder(runDir), `${process.pid}.json`);
  mkdirSync(folder(runDir), { recursive: true, mode: 0o700 });
  const full: InterfaceRecord = { pid: process.pid, namespace: ownNamespace(), ...record };
  writeFileSync(path, `${JSON.stringify(full)}\n`);
  return () => rmSync(path, { force: true });
}

/**
 * Interfaces of this network namespace whose processes live. Records that a killed process left are removed; one whose number another
 * process has by now, or whose interface was renamed, is left out.
 */
export function recordedInterfaces(runDir: string): InterfaceRecord[] {
  let names: string[];
  try {
    names = readdirSync(folder(runDir)).filter((name) => name.endsWith('.json'));
  } catch {
    return [];
  }
  const records: InterfaceRecord[] = [];
  for (const name of names) {
    const path = join(folder(runDir), name);
    try {
      const record = JSON.parse(readFileSync(path, 'utf8')) as InterfaceRecord;
      if (!alive(record.pid)) rmSync(path, { force: true });
      else if (record.namespace === ownNamespace() && exists(record.name)) records.push(record);
    } catch {
      // It went meanwhile, or is being written.
    }
  }
  return records.toSorted((a, b) => a.name.localeCompare(b.name));
}

function exists(name: string): boolean {
  try {
    interfaceFlags(name);
    return true;
  } catch {
    return false;
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (e) {
    return (e as NodeJS.ErrnoException).code === 'EPERM';
  }
}
