/**
 * The driver's tunable, dev.netmap.ptnet_vnet_hdr (if_ptnet.c, netmap.c): whether a device is asked for the VirtIO
 * network header. Read, first found wins: a flag, the environment variable PTNET_VNET_HDR, a file in the syntax of
 * loader.conf(5), the default 1.
 */
import { errno, SysError } from '../os/index.ts';

export const VNET_HDR_TUNABLE = 'dev.netmap.ptnet_vnet_hdr';
export const VNET_HDR_VARIABLE = 'PTNET_VNET_HDR';

/**
 * The variables of a loader.conf: lines `name="value"`, quotes optional, `#` begins a comment; the last line wins.
 * @param file its name, for messages @throws SysError EINVAL naming the line
 */
export function parseLoaderConf(text: string, file: string): ReadonlyMap<string, string> {
  const variables = new Map<string, string>();
  for (const [i, line] of text.split('\n').entries()) {
    if (/^\s*(#.*)?$/.test(line)) continue;
    const [, name, quoted, plain] = /^\s*([\w.-]+)=(?:"([^"]*)"|([^\s"#]*))\s*(?:#.*)?$/.exec(line) ?? [];
    if (name === undefined) {
      throw new SysError(`${file}:${i + 1}: "${line.trim()}" is not name="value"`, errno.EINVAL);
    }
    variables.set(name, quoted ?? plain ?? '');
  }
  return variables;
}

export interface TunableSources {
  /** The flag's value, if it was given. */
  readonly flag?: string | undefined;
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly loaderConf?: ReadonlyMap<string, string> | undefined;
}

/** Whether to ask for the VirtIO network header. @throws SysError EINVAL for a value that is not 0 or 1 */
export function vnetHdrTunable({ flag, env = {}, loaderConf }: TunableSources): boolean {
  const candidates: readonly (readonly [string, string | undefined])[] = [
    ['--vnet-hdr', flag],
    [VNET_HDR_VARIABLE, env[VNET_HDR_VARIABLE]],
    [VNET_HDR_TUNABLE, loaderConf?.get(VNET_HDR_TUNABLE)],
  ];
  for (const [name, value] of candidates) {
    if (value === undefined || value === '') continue;
    if (value !== '0' && value !== '1') throw new SysError(`${name} is "${value}", 0 or 1 is wanted`, errno.EINVAL);
    return value === '1';
  }
  return true;
}
