/* Decode a part of a JPEG, scaled: blocks outside of it are not transformed, and those below it not even read.
   Compiled by jpeg.py on first use. Needs libjpeg-turbo 1.5 or newer. */
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#define MARGIN 2 /* pixels beside the part: the smooth upsampling of colours looks at its neighbours */

struct errors {
    struct jpeg_error_mgr standard;
    jmp_buf back;
};

static void jump_back(j_common_ptr photo) { longjmp(((struct errors *)photo->err)->back, 1); }

static void say_nothing(j_common_ptr photo) { (void)photo; }

static void create(struct jpeg_decompress_struct *photo, struct errors *errors) {
    memset(photo, 0, sizeof *photo);
    photo->err = jpeg_std_error(&errors->standard);
    errors->standard.error_exit = jump_back;
    errors->standard.output_message = say_nothing;
}

/* size: width, height. Returns 0, or 1 for a photo that is left to others: damaged, or neither grey nor of 3 colours. */
int jpeg_size(const unsigned char *data, size_t num_bytes, int *size) {
    struct jpeg_decompress_struct photo;
    struct errors errors;
    create(&photo, &errors);
    if (setjmp(errors.back)) {
        jpeg_destroy_decompress(&photo);
        return 1;
    }
    jpeg_create_decompress(&photo);
    jpeg_mem_src(&photo, (unsigned char *)data, num_bytes);
    jpeg_read_header(&photo, TRUE);
    size[0] = photo.image_width;
    size[1] = photo.image_height;
    int left_to_others = (photo.num_components != 1 && photo.num_components != 3) || errors.standard.num_warnings > 0;
    jpeg_destroy_decompress(&photo);
    return left_to_others;
}

/* out: RGB, (bottom - top) rows of (right - left) pixels, of the photo scaled to eighths / 8 (8, 4, 2 or 1).
   to_end: read what lies below, too, so that damage there is found. Returns 0, or 1 if anything is wrong with the photo. */
int jpeg_part(const unsigned char *data, size_t num_bytes, int eighths, int left, int top, int right, int bottom,
              int to_end, unsigned char *out) {
    struct jpeg_decompress_struct photo;
    struct errors errors;
    create(&photo, &errors);
    if (setjmp(errors.back)) {
        jpeg_destroy_decompress(&photo);
        return 1;
    }
    jpeg_create_decompress(&photo);
    jpeg_mem_src(&photo, (unsigned char *)data, num_bytes);
    jpeg_read_header(&photo, TRUE);
    photo.scale_num = eighths;
    photo.scale_denom = 8;
    photo.out_color_space = JCS_RGB;
    jpeg_start_decompress(&photo);
    if (left < 0 || top < 0 || left >= right || top >= bottom || right > (int)photo.output_width ||
        bottom > (int)photo.output_height) {
        jpeg_destroy_decompress(&photo);
        return 1;
    }
    int wide_left = left > MARGIN ? left - MARGIN : 0;
    int wide_right = right + MARGIN < (int)photo.output_width ? right + MARGIN : (int)photo.output_width;
    JDIMENSION start = wide_left, width = wide_right - wide_left;
    jpeg_crop_scanline(&photo, &start, &width); /* moves start down to where a block begins */
    JSAMPARRAY row =
        photo.mem->alloc_sarray((j_common_ptr)&photo, JPOOL_IMAGE, photo.output_width * 3, 1);
    if (top > 0) jpeg_skip_scanlines(&photo, top);
    for (int y = top; y < bottom; y++) {
        jpeg_read_scanlines(&photo, row, 1);
        size_t wanted = (size_t)(right - left) * 3;
        memcpy(out + (y - top) * wanted, row[0] + (size_t)(left - start) * 3, wanted);
    }
    if (to_end) {
        JDIMENSION last = photo.output_height - 1;
        if (photo.output_scanline < last) jpeg_skip_scanlines(&photo, last - photo.output_scanline);
        if (photo.output_scanline == last) jpeg_read_scanlines(&photo, row, 1); /* to skip it, too, would read nothing */
        jpeg_finish_decompress(&photo);
    }
    int damaged = errors.standard.num_warnings > 0;
    jpeg_destroy_decompress(&photo);
    return damaged;
}
