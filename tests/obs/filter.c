/* What OBS Studio's GStreamer filter does to a pipeline, in a program that ASan and UBSan watch.
 *
 * The host owns the memory of its frames. It wraps a frame without a notification, pushes it, waits for one that comes
 * back, copies that, and reuses the memory at once. Here each frame has pages of its own, which nothing may touch any more
 * as soon as the call is over: a read by code that no sanitizer has instrumented is a SIGSEGV.
 *
 * usage: filter "EFFECT" "ANOTHER EFFECT"
 *
 * Every format is run twice with the first effect, with frames that stay readable and with frames that do not: the same
 * must come back. Then the user changes the text: the pipeline is destroyed, and the next frame builds one with the second
 * effect. Exits with 0 when all is well, and says what is wrong otherwise.
 */

#define _GNU_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gst/app/gstappsink.h>
#include <gst/app/gstappsrc.h>
#include <gst/gst.h>
#include <gst/video/video.h>

enum { WIDTH = 64, HEIGHT = 48, FRAMES = 4, LUMA = WIDTH * HEIGHT };

/* The host's formats, and the bytes of a frame in them without any padding. */
static const struct format {
    const char *name;
    size_t size;
} FORMATS[] = {
    {"I420", LUMA * 3 / 2}, {"NV12", LUMA * 3 / 2}, {"Y42B", LUMA * 2},
    {"YVYU", LUMA * 2},     {"YUY2", LUMA * 2},     {"UYVY", LUMA * 2},
    {"RGBA", LUMA * 4},     {"BGRA", LUMA * 4},     {"BGRx", LUMA * 4},
};

/* The host's clock: nanoseconds since some boot, at 60 frames per second. */
static const GstClockTime START = 12345678901234;
static const GstClockTime STEP = 16666667;

/* Only a failing run waits this long, where the host would wait for ever. */
static const GstClockTime PATIENCE = 60 * GST_SECOND;

/* Things of GStreamer that exist: each pipeline and each frame counts itself out when it is freed. */
static gint alive;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void object_is_gone(gpointer data, GObject *object)
{
    (void)data, (void)object;
    g_atomic_int_add(&alive, -1);
}

static void buffer_is_gone(gpointer data, GstMiniObject *object)
{
    (void)data, (void)object;
    g_atomic_int_add(&alive, -1);
}

/* Another filter of the host, that uses the same model and so keeps it loaded: not every Apply of this long test shall load
 * it anew. Those of the first format do. */
static GstElement *neighbour(const char *effect)
{
    GstElement *element = gst_parse_launch(effect, NULL);
    if (!element || gst_element_set_state(element, GST_STATE_PAUSED) == GST_STATE_CHANGE_FAILURE)
        die("%s: does not start", effect);
    return element;
}

/* A filter in the host: built by its first frame, as the text then is. */
struct filter {
    const struct format *format;
    const char *effect;
    GstElement *pipeline, *source, *sink;
};

static void build(struct filter *filter)
{
    gchar *caps = g_strdup_printf("video/x-raw, width=%d, height=%d, format=%s, framerate=0/1", WIDTH, HEIGHT,
                                  filter->format->name);
    gchar *text = g_strdup_printf("appsrc name=source format=time ! %s ! videoconvert ! %s ! videoconvert ! %s "
                                  "! appsink name=sink sync=false",
                                  caps, filter->effect, caps);
    GError *error = NULL;
    filter->pipeline = gst_parse_launch(text, &error);
    if (error)
        die("%s: %s", text, error->message);
    g_free(text);
    g_free(caps);
    g_atomic_int_inc(&alive);
    g_object_weak_ref(G_OBJECT(filter->pipeline), object_is_gone, NULL);
    filter->source = gst_bin_get_by_name(GST_BIN(filter->pipeline), "source");
    filter->sink = gst_bin_get_by_name(GST_BIN(filter->pipeline), "sink");
    gst_element_set_state(filter->pipeline, GST_STATE_PLAYING);
}

static void destroy(struct filter *filter)
{
    if (!filter->pipeline)
        return;
    gst_element_set_state(filter->pipeline, GST_STATE_NULL);
    gst_clear_object(&filter->source);
    gst_clear_object(&filter->sink);
    gst_clear_object(&filter->pipeline);
}

/* Dies of what the pipeline complains about, or of `what`. */
static void __attribute__((noreturn)) complain(struct filter *filter, const char *what)
{
    GstBus *bus = gst_element_get_bus(filter->pipeline);
    GstMessage *message = gst_bus_pop_filtered(bus, GST_MESSAGE_ERROR);
    if (!message)
        die("%s: %s", filter->format->name, what);
    GError *error = NULL;
    gchar *details = NULL;
    gst_message_parse_error(message, &error, &details);
    die("%s: %s: %s (%s)", filter->format->name, what, error->message, details);
}

/* One call of the host: restyles the frame in place. */
static void render(struct filter *filter, guint8 *frame, GstClockTime time)
{
    const size_t size = filter->format->size;
    if (!filter->pipeline)
        build(filter);
    GstBuffer *buffer = gst_buffer_new_wrapped_full(0, frame, size, 0, size, NULL, NULL);
    GST_BUFFER_PTS(buffer) = time;
    g_atomic_int_inc(&alive);
    gst_mini_object_weak_ref(GST_MINI_OBJECT_CAST(buffer), buffer_is_gone, NULL);
    if (gst_app_src_push_buffer(GST_APP_SRC(filter->source), buffer) != GST_FLOW_OK)
        complain(filter, "the frame is not taken");

    GstSample *sample = gst_app_sink_try_pull_sample(GST_APP_SINK(filter->sink), PATIENCE);
    if (!sample)
        complain(filter, "no frame comes back: the host would hang");
    GstBuffer *back = gst_sample_get_buffer(sample);
    GstVideoInfo info;
    if (!gst_video_info_from_caps(&info, gst_sample_get_caps(sample)))
        die("%s: what comes back is no video", filter->format->name);
    /* Where these differ, the host leaves its frame as it was and says nothing. */
    if (GST_VIDEO_INFO_SIZE(&info) != size)
        die("%s: %" G_GSIZE_FORMAT " bytes come back, not %zu", filter->format->name, GST_VIDEO_INFO_SIZE(&info), size);
    GstMapInfo map;
    if (!gst_buffer_map(back, &map, GST_MAP_READ))
        die("%s: what comes back cannot be read", filter->format->name);
    if (map.size != size)
        die("%s: %" G_GSIZE_FORMAT " bytes in memory, not %zu", filter->format->name, map.size, size);
    if (GST_BUFFER_PTS(back) != time)
        die("%s: a frame of %" PRIu64 " comes back, not of %" PRIu64, filter->format->name,
            (uint64_t)GST_BUFFER_PTS(back), (uint64_t)time);
    memcpy(frame, map.data, size);
    gst_buffer_unmap(back, &map);
    gst_sample_unref(sample);
}

/* Pages of the host's own, with frame `k`. */
static guint8 *make_frame(size_t size, unsigned k)
{
    guint8 *frame = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (frame == MAP_FAILED)
        die("no memory");
    for (size_t i = 0; i < size; i++)
        frame[i] = (guint8)(i / 7 * 3 + k * 31);
    return frame;
}

static GstClockTime time_of(unsigned k)
{
    return START + k * STEP;
}

static void run(const struct format *format, const char *effect, const char *other)
{
    const size_t size = format->size;
    guint8 *expected[FRAMES], *gone[FRAMES + 1];
    struct filter filter = {.format = format, .effect = effect};

    for (unsigned k = 0; k < FRAMES; k++) {
        expected[k] = make_frame(size, k);
        render(&filter, expected[k], time_of(k));
        guint8 *input = make_frame(size, k);
        if (!memcmp(expected[k], input, size))
            die("%s: frame %u comes back as it was", format->name, k);
        munmap(input, size);
    }
    destroy(&filter);

    guint8 *copy = g_malloc(size);
    for (unsigned k = 0; k < FRAMES; k++) {
        gone[k] = make_frame(size, k);
        render(&filter, gone[k], time_of(k));
        memcpy(copy, gone[k], size);
        /* Not unmapped before the pipeline is gone: the address must not get new contents. */
        if (mprotect(gone[k], size, PROT_NONE))
            die("mprotect");
        if (memcmp(copy, expected[k], size))
            die("%s: frame %u is another when its memory is taken away after the call", format->name, k);
    }

    /* The user changes the text. */
    destroy(&filter);
    filter.effect = other;
    gone[FRAMES] = make_frame(size, FRAMES - 1);
    render(&filter, gone[FRAMES], time_of(FRAMES));
    if (!memcmp(gone[FRAMES], expected[FRAMES - 1], size))
        die("%s: the second effect does what the first did", format->name);
    destroy(&filter);

    for (unsigned k = 0; k <= FRAMES; k++)
        munmap(gone[k], size);
    for (unsigned k = 0; k < FRAMES; k++)
        munmap(expected[k], size);
    g_free(copy);
}

int main(int count, char **arguments)
{
    if (count != 3)
        die("usage: %s EFFECT OTHER-EFFECT", arguments[0]);
    gst_init(NULL, NULL);
    run(&FORMATS[0], arguments[1], arguments[2]);
    GstElement *other = neighbour(arguments[1]);
    for (size_t i = 1; i < G_N_ELEMENTS(FORMATS); i++)
        run(&FORMATS[i], arguments[1], arguments[2]);
    gst_element_set_state(other, GST_STATE_NULL);
    gst_object_unref(other);
    if (g_atomic_int_get(&alive) != 0)
        die("%d pipelines and frames are left over", g_atomic_int_get(&alive));
    gst_deinit();
    puts("all is well");
    return 0;
}
