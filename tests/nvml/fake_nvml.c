/* A libnvidia-ml.so.1 without cards: it answers from the text file named by FAKE_NVML_FILE, which it reads anew at
 * every call, so that a test can change the machine under a running program. The lines of the file:
 *
 *   driver VERSION              hang FUNCTION (blocks for ever when called)
 *   gpu UUID                    begins a card; the lines below tell about it
 *   name TEXT      memory BYTES     used BYTES     bus DOMAIN:BUS:DEVICE.0     minor N
 *   numa N         switch N         utilization PERCENT
 *   temperature C  power MILLIWATTS  energy MILLIJOULES    ecc ERRORS
 *   nvlink_errors N             replays of each link
 *   process PID BYTES           nvlink UUID (one line for each link)
 *   xid N                       an event, told once to each program that has registered; new ones are added at the end
 *   rows_failed                 a row of its memory cannot be remapped
 *   lost                        the card has fallen off the bus
 *   mig_mode                    MIG is switched on
 *   mig UUID GI CI MEMORY USED PROFILE   begins an instance of the card (PROFILE as 1g.10gb); processes below are on it
 */

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9,
       TIMEOUT = 10, LOST = 15 };
enum { INTERNAL = 0, SINGLE = 10, NODE = 40, SYSTEM = 50 };
enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5, P2P_NVLINK = 2 };
enum { MOST_GPUS = 64, MOST_PROCESSES = 64, MOST_LINKS = 18, MOST_XIDS = 32, MOST_PARTS = 8 };
enum { PART_BITS = 8 }; /* a handle is 1 + the card, or that and 1 + the instance above PART_BITS */
enum { XID_EVENT = 8 };

typedef void *device;
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct utilization { unsigned gpu, memory; };
struct event { device gpu; unsigned long long kind, data; unsigned gpu_instance, compute_instance; };
struct pci { char old_bus[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };

struct part {
    char uuid[80], profile[32];
    unsigned gpu_instance, compute_instance, processes;
    unsigned long long memory, used;
    struct process process[MOST_PROCESSES];
};

typedef unsigned long long ull;

struct gpu {
    char uuid[80], name[96], bus[32], links[MOST_LINKS][80];
    ull memory, used, minor, numa, pci_switch, utilization, temperature, power, energy, ecc, nvlink_errors;
    ull rows_failed, lost, mig_mode; /* 1: it is so */
    ull xid[MOST_XIDS];
    unsigned xids, processes, nvlinks, parts;
    struct process process[MOST_PROCESSES];
    struct part part[MOST_PARTS];
};

/* Words of the file that are followed by one number, or by nothing. */
#define PLACE(word, field) { word, offsetof(struct gpu, field) }
static const struct { const char *word; size_t place; } numbers[] = {
    PLACE("memory", memory), PLACE("used", used), PLACE("minor", minor), PLACE("numa", numa),
    PLACE("switch", pci_switch), PLACE("utilization", utilization), PLACE("temperature", temperature),
    PLACE("power", power), PLACE("energy", energy), PLACE("ecc", ecc), PLACE("nvlink_errors", nvlink_errors),
}, flags[] = { PLACE("rows_failed", rows_failed), PLACE("lost", lost), PLACE("mig_mode", mig_mode) };

static _Thread_local struct { char driver[80]; unsigned gpus; struct gpu gpu[MOST_GPUS]; } facts;
static int initialized;
static struct { int registered; unsigned told; } events[MOST_GPUS];

/* What a line says of a card, or of the instance that was named last. */
static void read_fact(struct gpu *gpu, struct part **part, const char *word, const char *text)
{
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(word, numbers[i].word))
            *(ull *)((char *)gpu + numbers[i].place) = strtoull(text, NULL, 10);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (!strcmp(word, flags[i].word))
            *(ull *)((char *)gpu + flags[i].place) = 1;
    if (!strcmp(word, "name"))
        snprintf(gpu->name, sizeof gpu->name, "%.95s", text);
    else if (!strcmp(word, "bus"))
        snprintf(gpu->bus, sizeof gpu->bus, "%.31s", text);
    else if (!strcmp(word, "xid") && gpu->xids < MOST_XIDS)
        gpu->xid[gpu->xids++] = strtoull(text, NULL, 10);
    else if (!strcmp(word, "nvlink") && gpu->nvlinks < MOST_LINKS)
        snprintf(gpu->links[gpu->nvlinks++], sizeof gpu->links[0], "%.79s", text);
    else if (!strcmp(word, "mig") && gpu->parts < MOST_PARTS) {
        *part = &gpu->part[gpu->parts++];
        sscanf(text, "%79s %u %u %llu %llu %31s", (*part)->uuid, &(*part)->gpu_instance, &(*part)->compute_instance,
               &(*part)->memory, &(*part)->used, (*part)->profile);
    } else if (!strcmp(word, "process")) {
        unsigned *count = *part ? &(*part)->processes : &gpu->processes;
        struct process *process = *part ? (*part)->process : gpu->process;
        if (*count < MOST_PROCESSES) {
            process += (*count)++;
            sscanf(text, "%u %llu", &process->pid, &process->memory);
            process->gpu_instance = *part ? (*part)->gpu_instance : 0xFFFFFFFF;
            process->compute_instance = *part ? (*part)->compute_instance : 0xFFFFFFFF;
        }
    }
}

/* Reads the facts; blocks if they say that this function does. */
static int read_facts(const char *function)
{
    const char *path = getenv("FAKE_NVML_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], word[32], text[200];
    static _Thread_local struct gpu none;
    struct gpu *gpu = &none;
    struct part *part = NULL;

    if (!file)
        return NO_DRIVER;
    memset(&facts, 0, sizeof facts);
    memset(&none, 0, sizeof none);
    while (fgets(line, sizeof line, file)) {
        text[0] = 0;
        if (sscanf(line, "%31s %199[^\n]", word, text) < 1)
            continue;
        if (!strcmp(word, "hang") && !strcmp(text, function)) {
            fclose(file);
            for (;;)
                pause();
        }
        if (!strcmp(word, "driver"))
            snprintf(facts.driver, sizeof facts.driver, "%.79s", text);
        else if (!strcmp(word, "gpu") && facts.gpus < MOST_GPUS) {
            gpu = &facts.gpu[facts.gpus++];
            part = NULL;
            snprintf(gpu->uuid, sizeof gpu->uuid, "%.79s", text);
        } else
            read_fact(gpu, &part, word, text);
    }
    fclose(file);
    return OK;
}

static int enter(const char *function)
{
    return initialized ? read_facts(function) : UNINITIALIZED;
}

/* ``part`` NULL: the function knows cards only; else it is set to NULL for a card. */
static int find(const char *function, device handle, struct gpu **gpu, struct part **part)
{
    size_t number = (size_t)handle & ((1 << PART_BITS) - 1), place = (size_t)handle >> PART_BITS;
    int result = enter(function);
    if (result)
        return result;
    if (number < 1 || number > facts.gpus || (place && place > facts.gpu[number - 1].parts))
        return INVALID_ARGUMENT;
    if (place && !part)
        return NOT_SUPPORTED;
    *gpu = &facts.gpu[number - 1];
    if (part)
        *part = place ? &(*gpu)->part[place - 1] : NULL;
    return (*gpu)->lost ? LOST : OK;
}

#define ENTER() do { int result_ = enter(__func__); if (result_) return result_; } while (0)
#define FIND(handle, gpu) do { int result_ = find(__func__, handle, &gpu, NULL); if (result_) return result_; } while (0)

#define FIND_ANY(handle, gpu, part) \
    do { int result_ = find(__func__, handle, &gpu, &part); if (result_) return result_; } while (0)

static int copy(char *to, unsigned size, const char *from)
{
    return (size_t)snprintf(to, size, "%s", from) < size ? OK : TOO_SMALL;
}

static int linked(const struct gpu *one, const struct gpu *other)
{
    for (unsigned link = 0; link < one->nvlinks; link++)
        if (!strcmp(one->links[link], other->uuid))
            return 1;
    return 0;
}

static void fill_pci(const struct gpu *gpu, struct pci *pci)
{
    memset(pci, 0, sizeof *pci);
    snprintf(pci->text, sizeof pci->text, "%s", gpu->bus);
    sscanf(gpu->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->old_bus, sizeof pci->old_bus, "%04x:%02x:%02x.0", pci->domain & 0xFFFF, pci->bus & 0xFF,
             pci->device & 0xFF);
}

int nvmlInitWithFlags(unsigned flags)
{
    int result = read_facts(__func__);
    (void)flags;
    initialized += result == OK;
    return result;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void)
{
    ENTER();
    initialized--;
    return OK;
}

const char *nvmlErrorString(int result)
{
    switch (result) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case TOO_SMALL: return "Insufficient Size";
    case NO_DRIVER: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    ENTER();
    return copy(version, size, facts.driver);
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    ENTER();
    *count = facts.gpus;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *handle)
{
    struct gpu *gpu;
    *handle = (device)((size_t)index + 1);
    FIND(*handle, gpu);
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device *handle)
{
    ENTER();
    for (unsigned index = 0; index < facts.gpus; index++)
        if (!strcmp(facts.gpu[index].uuid, uuid)) {
            *handle = (device)((size_t)index + 1);
            return facts.gpu[index].lost ? LOST : OK;
        }
    return NOT_FOUND;
}

/* One value of a card. */
#define GET(function, type, value) \
    int function(device handle, type *result) \
    { \
        struct gpu *gpu; \
        FIND(handle, gpu); \
        *result = value; \
        return OK; \
    }

GET(nvmlDeviceGetMinorNumber, unsigned, gpu->minor)
GET(nvmlDeviceGetNumaNodeId, unsigned, gpu->numa)
GET(nvmlDeviceGetIndex, unsigned, gpu - facts.gpu)
GET(nvmlDeviceGetPowerUsage, unsigned, gpu->power)
GET(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, gpu->energy)
GET(nvmlDeviceGetMaxMigDeviceCount, unsigned, MOST_PARTS)

/* One value of an instance. */
#define GET_OF_PART(function, value) \
    int function(device handle, unsigned *result) \
    { \
        struct gpu *gpu; \
        struct part *part; \
        FIND_ANY(handle, gpu, part); \
        if (!part) \
            return INVALID_ARGUMENT; \
        *result = value; \
        return OK; \
    }

GET_OF_PART(nvmlDeviceGetGpuInstanceId, part->gpu_instance)
GET_OF_PART(nvmlDeviceGetComputeInstanceId, part->compute_instance)

int nvmlDeviceGetUUID(device handle, char *uuid, unsigned size)
{
    struct gpu *gpu;
    struct part *part;
    FIND_ANY(handle, gpu, part);
    return copy(uuid, size, part ? part->uuid : gpu->uuid);
}

int nvmlDeviceGetName(device handle, char *name, unsigned size)
{
    struct gpu *gpu;
    struct part *part;
    FIND_ANY(handle, gpu, part);
    if (!part)
        return copy(name, size, gpu->name);
    return (size_t)snprintf(name, size, "%s MIG %s", gpu->name, part->profile) < size ? OK : TOO_SMALL;
}

int nvmlDeviceGetPciInfo_v3(device handle, struct pci *pci)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    fill_pci(gpu, pci);
    return OK;
}

int nvmlDeviceGetMemoryInfo(device handle, struct memory *memory)
{
    struct gpu *gpu;
    struct part *part;
    FIND_ANY(handle, gpu, part);
    *memory = part ? (struct memory){part->memory, part->memory - part->used, part->used}
                   : (struct memory){gpu->memory, gpu->memory - gpu->used, gpu->used};
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(device handle, struct memory_v2 *memory)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    *memory = (struct memory_v2){memory->version, gpu->memory, 0, gpu->memory - gpu->used, gpu->used};
    return OK;
}

int nvmlDeviceGetUtilizationRates(device handle, struct utilization *rates)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    if (gpu->mig_mode)
        return NOT_SUPPORTED;
    *rates = (struct utilization){gpu->utilization, gpu->memory ? 100 * gpu->used / gpu->memory : 0};
    return OK;
}

static int list_processes(const struct gpu *gpu, const struct part *part, unsigned *count,
                          struct process *processes)
{
    unsigned room = *count, number = part ? part->processes : gpu->processes;
    *count = number;
    if (number > room)
        return TOO_SMALL;
    if (number)
        memcpy(processes, part ? part->process : gpu->process, number * sizeof *processes);
    return OK;
}

#define LIST_PROCESSES(function) \
    int function(device handle, unsigned *count, struct process *processes) \
    { \
        struct gpu *gpu; \
        struct part *part; \
        FIND_ANY(handle, gpu, part); \
        return list_processes(gpu, part, count, processes); \
    }

LIST_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2)
LIST_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3)

int nvmlDeviceGetTopologyCommonAncestor(device first, device second, int *level)
{
    struct gpu *one, *other;
    FIND(first, one);
    FIND(second, other);
    if (first == second)
        *level = INTERNAL;
    else if (one->numa != other->numa)
        *level = SYSTEM;
    else
        *level = one->pci_switch == other->pci_switch ? SINGLE : NODE;
    return OK;
}

int nvmlDeviceGetP2PStatus(device first, device second, int kind, int *status)
{
    struct gpu *one, *other;
    FIND(first, one);
    FIND(second, other);
    *status = kind != P2P_NVLINK || linked(one, other) ? P2P_OK : P2P_NOT_SUPPORTED;
    return OK;
}

int nvmlDeviceGetNvLinkState(device handle, unsigned link, unsigned *active)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    if (link >= MOST_LINKS)
        return INVALID_ARGUMENT;
    *active = link < gpu->nvlinks;
    return OK;
}

int nvmlDeviceGetNvLinkErrorCounter(device handle, unsigned link, int counter, unsigned long long *count)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    if (link >= gpu->nvlinks)
        return INVALID_ARGUMENT;
    *count = counter == 0 ? gpu->nvlink_errors : 0; /* replays of each link */
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device handle, unsigned link, struct pci *pci)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    if (link >= gpu->nvlinks)
        return INVALID_ARGUMENT;
    for (unsigned index = 0; index < facts.gpus; index++)
        if (!strcmp(facts.gpu[index].uuid, gpu->links[link])) {
            fill_pci(&facts.gpu[index], pci);
            return OK;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetTemperature(device handle, int sensor, unsigned *degrees)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    *degrees = gpu->temperature;
    return sensor ? INVALID_ARGUMENT : OK;
}

int nvmlDeviceGetTotalEccErrors(device handle, int kind, int counter, unsigned long long *count)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    *count = kind == 1 && counter == 0 ? gpu->ecc : 0; /* uncorrected, since the driver was loaded */
    return OK;
}

int nvmlDeviceGetRemappedRows(device handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    *corrected = *uncorrected = *pending = 0;
    *failed = gpu->rows_failed;
    return OK;
}

int nvmlDeviceGetMigMode(device handle, unsigned *current, unsigned *pending)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    *current = *pending = gpu->mig_mode;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device handle, unsigned index, device *found)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    if (!gpu->mig_mode || index >= gpu->parts)
        return NOT_FOUND;
    *found = (device)((size_t)handle | ((size_t)index + 1) << PART_BITS);
    return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device handle, device *found)
{
    struct gpu *gpu;
    struct part *part;
    FIND_ANY(handle, gpu, part);
    if (!part)
        return INVALID_ARGUMENT;
    *found = (device)((size_t)(gpu - facts.gpu) + 1);
    return OK;
}

int nvmlEventSetCreate(void **set)
{
    ENTER();
    *set = events;
    return OK;
}

int nvmlDeviceRegisterEvents(device handle, unsigned long long kinds, void *set)
{
    struct gpu *gpu;
    FIND(handle, gpu);
    if (set != events || !(kinds & XID_EVENT))
        return INVALID_ARGUMENT;
    events[gpu - facts.gpu].registered = 1;
    events[gpu - facts.gpu].told = gpu->xids;
    return OK;
}

/* Never waits: a test has no use for it. */
int nvmlEventSetWait_v2(void *set, struct event *event, unsigned milliseconds)
{
    ENTER();
    (void)milliseconds;
    if (set != events)
        return INVALID_ARGUMENT;
    for (unsigned index = 0; index < facts.gpus; index++)
        if (events[index].registered && events[index].told < facts.gpu[index].xids) {
            unsigned long long xid = facts.gpu[index].xid[events[index].told++];
            *event = (struct event){(device)((size_t)index + 1), XID_EVENT, xid, 0xFFFFFFFF, 0xFFFFFFFF};
            return OK;
        }
    return TIMEOUT;
}

int nvmlEventSetFree(void *set)
{
    return set == events ? OK : INVALID_ARGUMENT;
}
