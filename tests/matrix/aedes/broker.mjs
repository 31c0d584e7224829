// A broker of aedes with everything in memory, which is what it does unless told otherwise: node broker.mjs MODULES PORT
import { createRequire } from 'node:module'
import { createServer } from 'node:net'
import { resolve } from 'node:path'

const [modules, port] = process.argv.slice(2)
const { Aedes } = createRequire(resolve(modules, 'aedes'))('aedes')
const broker = await Aedes.createBroker()
createServer(broker.handle).listen(Number(port), '127.0.0.1')
