// Takes pictures of the templates in a headless Chromium, and fails where one does not fit a screen of 320 pixels, has a
// text with a contrast under 4.5:1, or a code that a double click does not select as one word.
//
//   node scripts/screenshots.mjs GATEPOST PICTURES [TEMPLATES]
//
// PICTURES is the directory to write into, TEMPLATES one with templates of your own to look at in place of the built-in.
// It speaks the DevTools protocol over a pipe and needs nothing but Node and Chromium.
import { spawn, execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve as absolute } from 'node:path'
import { pathToFileURL } from 'node:url'

const [gatepost, outDir, own] = process.argv.slice(2)
const browser = process.env.CHROMIUM ?? 'chromium'
const widths = [320, 600]
const modes = ['light', 'dark']
const shown = ['en', 'ja'] // all languages are looked at, and pictures kept of these
const readable = 4.5
const code = '607596'

// Browser is one Chromium and the one page it shows.
class Browser {
  #process
  #pending = new Map()
  #listeners = new Map()
  #last = 0
  #session
  #profile

  constructor(profile) {
    this.#profile = profile
    this.#process = spawn(browser, ['--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage',
      '--font-render-hinting=none', '--remote-debugging-pipe', `--user-data-dir=${profile}`, 'about:blank'],
    { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] })
    this.#process.on('error', (err) => { throw new Error(`start ${browser}: ${err.message} (apt-get install chromium)`) })
    let rest = ''
    this.#process.stdio[4].on('data', (chunk) => {
      const messages = (rest + chunk).split('\0')
      rest = messages.pop()
      for (const m of messages) this.#hear(JSON.parse(m))
    })
  }

  #hear(m) {
    if (m.id) {
      const { resolve, reject } = this.#pending.get(m.id)
      this.#pending.delete(m.id)
      m.error ? reject(new Error(m.error.message)) : resolve(m.result)
    } else if (this.#listeners.has(m.method)) {
      this.#listeners.get(m.method)(m.params)
      this.#listeners.delete(m.method)
    }
  }

  send(method, params = {}) {
    const id = ++this.#last
    this.#process.stdio[3].write(JSON.stringify({ id, method, params, sessionId: this.#session }) + '\0')
    return new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject }))
  }

  #once(method) { return new Promise((resolve) => this.#listeners.set(method, resolve)) }

  async open() {
    const { targetInfos } = await this.send('Target.getTargets')
    const { targetId } = targetInfos.find((t) => t.type === 'page')
    this.#session = (await this.send('Target.attachToTarget', { targetId, flatten: true })).sessionId
    await this.send('Page.enable')
  }

  async show(html, width, mode) {
    await this.send('Emulation.setDeviceMetricsOverride', { width, height: 100, deviceScaleFactor: 1, mobile: false })
    await this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: mode }] })
    const file = join(this.#profile, 'page.html')
    writeFileSync(file, html)
    const loaded = this.#once('Page.loadEventFired')
    await this.send('Page.navigate', { url: pathToFileURL(file).href })
    await loaded
    await this.eval(`Promise.all([document.fonts.ready, ...[...document.images].map((i) => i.decode().catch(() => {}))]).then(() => true)`)
  }

  async eval(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true })
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
    return result.value
  }

  async doubleClick(x, y) {
    for (const clickCount of [1, 2]) {
      for (const type of ['mousePressed', 'mouseReleased']) await this.send('Input.dispatchMouseEvent', { type, x, y, button: 'left', clickCount })
    }
  }

  async picture(format) {
    const { data } = await this.send('Page.captureScreenshot', { format, quality: format === 'webp' ? 80 : undefined, captureBeyondViewport: true })
    return data
  }

  async close() {
    const ended = new Promise((resolve) => this.#process.on('exit', resolve))
    this.send('Browser.close').catch(() => {})
    await ended
  }
}

// inspect runs in the page and returns what is wrong with it, and where its code is.
function inspect(readable, code) {
  const problems = []
  const channels = (color) => color.match(/[\d.]+/g).map(Number)
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const background = (e) => {
    for (; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor)
      if (c[3] !== 0) return c
    }
    return [255, 255, 255]
  }
  if (document.documentElement.scrollWidth > innerWidth) problems.push(`it is ${document.documentElement.scrollWidth} pixels wide`)
  let at = null
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const text = n.data.trim()
    const e = n.parentElement
    if (!text || !e.checkVisibility()) continue
    const range = document.createRange()
    range.selectNodeContents(n)
    const box = range.getBoundingClientRect()
    if (box.right > innerWidth + 0.5 || box.left < -0.5) problems.push(`"${text}" reaches from ${box.left} to ${box.right}`)
    const [a, b] = [luminance(channels(getComputedStyle(e).color)), luminance(background(e))]
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    if (contrast < readable) problems.push(`"${text}" has a contrast of ${contrast.toFixed(2)}`)
    if (text === code) at = { x: box.x + box.width / 2, y: box.y + box.height / 2, lines: range.getClientRects().length }
  }
  return { problems, at, height: document.documentElement.scrollHeight }
}

const profile = mkdtempSync(join(tmpdir(), 'screenshots-'))
const config = join(profile, 'gatepost.toml')
const long = join(profile, 'long.toml') // the same with words that are too long for a line
const written = (name) => `hostname = "gw.example.com"
state_dir = "state"
[listen.smtp]
address = "127.0.0.1:2525"
clients = ["logto"]
[client.logto]
networks = ["127.0.0.0/8"]
streams = ["auth"]
[stream.auth]
kind = "auth"
domains = ["auth.example.com"]
route = ["out"]
egress = "any"
[upstream.out]
type = "capture"
dkim = "none"
[templates]
sender_name = "${name}"
company_information = "${name} Ltd, 1 High Street, London"
${own ? `dir = ${JSON.stringify(absolute(own))}` : ''}
`
writeFileSync(config, written('Example'))
writeFileSync(long, written('Example'.repeat(40)))
const values = join(profile, 'values.json')
writeFileSync(values, JSON.stringify({ code, link: `https://app.example.com/verify?token=${'x'.repeat(500)}`, organization: { name: 'Example'.repeat(40) } }))
const run = (file, ...args) => execFileSync(gatepost, ['template', ...args, '-c', file], { encoding: 'utf8' })
const templates = JSON.parse(run(config, 'list', '--json'))
const page = new Browser(profile)
let looked = 0
let failed = 0
const complain = (what, problem) => { failed++; console.error(`${what}: ${problem}`) }

// look shows one template and returns its picture.
async function look(type, html, { locale, mode, width }) {
  const what = `${type} in ${locale}, ${mode}, ${width} pixels`
  await page.show(html, width, mode)
  const { problems, at, height } = await page.eval(`(${inspect})(${readable}, ${JSON.stringify(code)})`)
  for (const p of problems) complain(what, p)
  if (html.replace(/<style.*?<\/style>|<[^>]*>/gs, '').includes(code)) {
    if (!at || at.lines !== 1) complain(what, 'the code is not on one line, in one piece')
    else {
      await page.doubleClick(at.x, at.y)
      const selected = await page.eval('getSelection().toString().trim()')
      if (selected !== code) complain(what, `a double click on the code selects "${selected}"`)
      await page.eval('getSelection().removeAllRanges()')
    }
  }
  await page.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false })
  return { width, picture: await page.picture('png') }
}

// sheet puts pictures side by side into one file.
async function sheet(name, pictures) {
  const figures = pictures.map(({ type, width, picture }) =>
    `<figure><img width="${width}" src="data:image/png;base64,${picture}"><figcaption>${type}</figcaption></figure>`).join('')
  const width = 3 * (pictures[0].width + 24) + 24
  await page.show(`<!DOCTYPE html><html><meta charset="utf-8"><body style="margin:0;background:#888"><style>figure{margin:24px 0 0 24px;display:inline-block;vertical-align:top}
    figcaption{font:14px sans-serif;color:#000;padding-top:6px}img{display:block}</style>
    <div style="width:${width}px;padding-bottom:24px">${figures}</div></body></html>`, width, 'light')
  const height = await page.eval('document.documentElement.scrollHeight')
  await page.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false })
  writeFileSync(join(outDir, `${name}.webp`), Buffer.from(await page.picture('webp'), 'base64'))
}

try {
  await page.open()
  for (const locale of new Set(templates.map((t) => t.locale))) {
    const mails = templates.filter((t) => t.locale === locale).map(({ type }) => ({ type, html: run(config, 'preview', type, '--locale', locale, '--html'),
      crowded: run(long, 'preview', type, '--locale', locale, '--html', '--variables', values) }))
    for (const mode of modes) for (const width of widths) {
      const pictures = []
      for (const { type, html } of mails) pictures.push({ type, ...await look(type, html, { locale, mode, width }) })
      if (width === widths[0]) for (const { type, crowded } of mails) await look(`${type} with long words and a link`, crowded, { locale, mode, width })
      looked += pictures.length
      if (shown.includes(locale)) await sheet(`${locale}-${mode}-${width}`, pictures)
    }
  }
} finally {
  await page.close()
  rmSync(profile, { recursive: true, force: true })
}
console.log(`${looked} looks at ${templates.length} templates, ${failed} problems`)
process.exit(failed ? 1 : 0)
