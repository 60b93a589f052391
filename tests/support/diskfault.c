/* diskfault: preloaded into a process, counts its durable steps in one directory tree, and ends or deceives it at one.
 *
 * A step is a call that changes what is on disk: pwrite, writev, fsync, fdatasync, ftruncate, mkdir, unlink, and open
 * with O_CREAT of a new file. At the armed step the process is
 *
 *     KILL    killed instead of the call,
 *     TORN    killed after half of the write (a sync or name is done whole),
 *     POWER   killed instead of the call, and of everything that was not synced until then a random part is undone:
 *             written pages get their former bytes, files and directories their former absence;
 *     FAIL    told that the call failed with a given errno, as are the next `times` - 1 steps, and lives on. The first
 *             half of a failing write is done.
 *
 * lock.mdb is left alone: LMDB changes it through a mapping, and it means nothing after a crash.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { KILL = 0, TORN = 1, POWER = 2, FAIL = 3 };
enum kind { WRITTEN, CREATED };
#define BLOCK 4096
#define MAX_UNDO 65536

struct undo {
    enum kind kind;
    int fd;            /* our own descriptor of the file */
    ino_t inode;       /* of the file; for CREATED that of its directory */
    off_t offset;
    size_t length;
    unsigned char old[BLOCK];
    char path[PATH_MAX];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static long steps, target = -1, failures;
static int mode, error_number;
static unsigned seed;
static struct undo *undo_log[MAX_UNDO];
static int undo_count;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

void diskfault_watch(const char *directory)
{
    snprintf(root, sizeof root, "%s", directory);
}

void diskfault_arm(long step, int how, unsigned random_seed, int errno_value, long times)
{
    pthread_mutex_lock(&mutex);
    steps = 0;
    target = step;
    mode = how;
    seed = random_seed;
    error_number = errno_value;
    failures = times;
    pthread_mutex_unlock(&mutex);
}

long diskfault_steps(void)
{
    return steps;
}

static int is_below(const char *path)
{
    size_t length = strlen(root), whole = strlen(path);
    if (!length || strncmp(path, root, length) || (path[length] != '/' && path[length]))
        return 0;
    return whole < 9 || strcmp(path + whole - 9, "/lock.mdb");
}

static int is_watched(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t length;
    if (!root[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

static ino_t inode_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) ? 0 : status.st_ino;
}

static struct undo *new_undo(enum kind kind)
{
    struct undo *entry = calloc(1, sizeof *entry);
    if (!entry || undo_count == MAX_UNDO)
        abort();
    entry->kind = kind;
    entry->fd = -1;
    undo_log[undo_count++] = entry;
    return entry;
}

static int own_descriptor(int fd, ino_t inode)
{
    char link[64];
    for (int i = undo_count - 1; i >= 0; i--)
        if (undo_log[i]->kind == WRITTEN && undo_log[i]->inode == inode)
            return undo_log[i]->fd;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return REAL(open)(link, O_RDWR | O_CLOEXEC);
}

/* Remember what a write is about to replace, block by block. */
static void remember_write(int fd, off_t offset, size_t length)
{
    ino_t inode = inode_of(fd);
    int own;
    if (fcntl(fd, F_GETFL) & O_DSYNC)
        return; /* durable when it returns */
    own = own_descriptor(fd, inode);
    while (length) {
        struct undo *entry = new_undo(WRITTEN);
        size_t part = BLOCK - offset % BLOCK;
        if (part > length)
            part = length;
        entry->fd = own;
        entry->inode = inode;
        entry->offset = offset;
        entry->length = part;
        if (pread(own, entry->old, part, offset) < 0)
            abort();
        offset += part;
        length -= part;
    }
}

static void remember_name(const char *path)
{
    struct undo *entry = new_undo(CREATED);
    struct stat status;
    char *slash;
    snprintf(entry->path, sizeof entry->path, "%s", path);
    slash = strrchr(entry->path, '/');
    if (!slash)
        abort();
    *slash = 0;
    entry->inode = stat(entry->path, &status) ? 0 : status.st_ino;
    *slash = '/';
}

static void synced(int fd)
{
    ino_t inode = inode_of(fd);
    int kept = 0;
    for (int i = 0; i < undo_count; i++) {
        if (undo_log[i]->inode == inode)
            free(undo_log[i]);
        else
            undo_log[kept++] = undo_log[i];
    }
    undo_count = kept;
}

static int overlaps(const struct undo *a, const struct undo *b)
{
    return a->kind == WRITTEN && b->kind == WRITTEN && a->inode == b->inode
        && a->offset < b->offset + (off_t)b->length && b->offset < a->offset + (off_t)a->length;
}

static void lose_power(void)
{
    static char lost[PATH_MAX + 16];
    for (int i = undo_count - 1; i >= 0; i--) {
        int is_kept = rand_r(&seed) & 1;
        for (int later = i + 1; later < undo_count; later++)
            if (undo_log[later] && overlaps(undo_log[i], undo_log[later]))
                is_kept = 1; /* a later write to the same bytes has reached the disk */
        if (is_kept)
            continue;
        if (undo_log[i]->kind == WRITTEN) {
            if (REAL(pwrite)(undo_log[i]->fd, undo_log[i]->old, undo_log[i]->length, undo_log[i]->offset) < 0)
                abort();
        } else {
            snprintf(lost, sizeof lost, "%s.lost%d", undo_log[i]->path, (int)getpid());
            rename(undo_log[i]->path, lost);
        }
        undo_log[i] = NULL;
    }
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Count a step. Returns 0 to go on, TORN to do half and die, FAIL to do half and report error_number. */
static int step(void)
{
    steps++;
    if (target < 0 || steps < target)
        return 0;
    if (mode == FAIL) {
        if (steps >= target + failures)
            return 0;
        return FAIL;
    }
    if (steps > target)
        return 0;
    if (mode == TORN)
        return TORN;
    if (mode == POWER)
        lose_power();
    die();
    return 0;
}

static ssize_t write_at(int fd, const void *data, size_t length, off_t offset)
{
    ssize_t written;
    int what;
    if (!is_watched(fd))
        return REAL(pwrite)(fd, data, length, offset);
    pthread_mutex_lock(&mutex);
    what = step();
    remember_write(fd, offset, length);
    written = REAL(pwrite)(fd, data, what ? length / 2 : length, offset);
    if (what == TORN)
        die();
    if (what == FAIL) {
        errno = error_number;
        written = -1;
    }
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return write_at(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    return write_at(fd, data, length, offset);
}

ssize_t writev(int fd, const struct iovec *vectors, int count)
{
    ssize_t written;
    size_t length = 0;
    int what;
    if (!is_watched(fd))
        return REAL(writev)(fd, vectors, count);
    pthread_mutex_lock(&mutex);
    what = step();
    for (int i = 0; i < count; i++)
        length += vectors[i].iov_len;
    remember_write(fd, lseek(fd, 0, SEEK_CUR), length);
    written = REAL(writev)(fd, vectors, what ? (count + 1) / 2 : count);
    if (what == TORN)
        die();
    if (what == FAIL) {
        errno = error_number;
        written = -1;
    }
    pthread_mutex_unlock(&mutex);
    return written;
}

/* A sync, or a change of a name or size: `after` is done when it has succeeded. */
#define STEP(watched, call, after)                        \
    do {                                                  \
        int result, what;                                 \
        if (!(watched))                                   \
            return (call);                                \
        pthread_mutex_lock(&mutex);                       \
        what = step();                                    \
        if (what == FAIL) {                               \
            errno = error_number;                         \
            result = -1;                                  \
        } else {                                          \
            result = (call);                              \
            if (result >= 0) {                            \
                after;                                    \
            }                                             \
            if (what == TORN)                             \
                die();                                    \
        }                                                 \
        pthread_mutex_unlock(&mutex);                     \
        return result;                                    \
    } while (0)

int fsync(int fd)
{
    STEP(is_watched(fd), REAL(fsync)(fd), synced(fd));
}

int fdatasync(int fd)
{
    STEP(is_watched(fd), REAL(fdatasync)(fd), synced(fd));
}

int ftruncate(int fd, off_t length)
{
    STEP(is_watched(fd), REAL(ftruncate)(fd, length), );
}

int ftruncate64(int fd, off64_t length)
{
    STEP(is_watched(fd), REAL(ftruncate)(fd, length), );
}

int unlink(const char *path)
{
    STEP(is_below(path), REAL(unlink)(path), );
}

int mkdir(const char *path, mode_t permissions)
{
    STEP(is_below(path) && access(path, F_OK), REAL(mkdir)(path, permissions), remember_name(path));
}

static int open_file(const char *path, int flags, mode_t permissions)
{
    STEP((flags & O_CREAT) && is_below(path) && access(path, F_OK), REAL(open)(path, flags, permissions),
        remember_name(path));
}

static mode_t permissions_of(int flags, va_list arguments)
{
    return flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t permissions;
    va_start(arguments, flags);
    permissions = permissions_of(flags, arguments);
    va_end(arguments);
    return open_file(path, flags, permissions);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t permissions;
    va_start(arguments, flags);
    permissions = permissions_of(flags, arguments);
    va_end(arguments);
    return open_file(path, flags | O_LARGEFILE, permissions);
}
