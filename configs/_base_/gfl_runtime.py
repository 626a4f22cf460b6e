# Runtime settings of GFL.
_base_ = ['./coco_runtime.py']

# The published network projects stage 1 too, though the FPN starts at stage 2: that projection gets no gradient, which
# distributed training has to expect.
find_unused_parameters = True
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(iou_threshold=0.6)))  # boxes only
